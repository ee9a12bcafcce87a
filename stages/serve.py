# SPDX-License-Identifier: GPL-2.0-or-later
"""Answer a source on stdin and stdout. Started by the other host through ssh; not meant to be typed."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import stages
from migrator import cli, log, spool
from migrator.errors import ProtocolError
from migrator.journal import DEFAULT_PATH, Journal
from migrator.protocol import Connection, Handler, Takeover, serve
from migrator.service import Place, Service
from migrator.stream import FileStream

NAME = "serve"
HELP = "answer the other host (started by it through ssh)"
# After silence of this many seconds the source is taken for dead, and its lock on the container goes: as many as the
# source itself waits for us (--timeout), within these limits.
SILENCE_LEAST, SILENCE_MOST = 5.0, 300.0

Receiver = Callable[[Service, dict[str, Any]], Place]


def add_arguments(_parser: argparse.ArgumentParser) -> None:
    pass


def run(_args: argparse.Namespace) -> None:
    cli.require_root(NAME)
    log.level = min(log.level, log.Level.QUIET)
    with contextlib.ExitStack() as stack:
        service = Service(stack.enter_context(Journal(DEFAULT_PATH)), stack)
        connection = stack.enter_context(Connection(FileStream.from_stdio()))
        connection.hello()
        connection.adopt_timeout(SILENCE_LEAST, SILENCE_MOST)
        serve(connection, handlers(service))


def handlers(service: Service) -> dict[str, Handler]:
    """Every operation that a stage answers, and the transfer that brings its data."""
    found: dict[str, Handler] = {"transfer": partial(transfer, service)}
    for stage in stages.ALL:
        found |= {op: partial(handler, service) for op, handler in getattr(stage, "HANDLERS", {}).items()}
    return found


def transfer(service: Service, fields: dict[str, Any]) -> Takeover:
    """Receive streams of the kind that a stage has a receiver for."""
    receivers: dict[str, Receiver] = {}
    for stage in stages.ALL:
        receivers |= getattr(stage, "RECEIVERS", {})
    kind = str(fields.get("kind"))
    if kind not in receivers:
        raise ProtocolError(reason=f"it sends data of the unknown kind {kind[:40]!a}")
    place = receivers[kind](service, fields)
    return spool.receive(place.folder, fields.get("files"), durable=place.durable, watcher=place.behind)
