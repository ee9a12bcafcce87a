# SPDX-License-Identifier: GPL-2.0-or-later
"""Answer a source on stdin and stdout. Started by the other host over SSH; not meant to be typed.

Whoever may start it as root may do anything here. `--only WORDS` makes it all that a key in authorized_keys may do:

    restrict,command="migrator serve --only receive,lxcpath=/pool,as=hosta" ssh-ed25519 AAAA... root@hosta

WORDS are `receive` (containers may be moved here), `lxcpath=PATH` (to that place; can be repeated; by default to this
host's LXC path), `hooks` (with what in their configuration reaches outside them), `as=NAME` (their migrations are bound
to that name; give each key its own), `ask` (for a host that containers move to: ask how a migration stands).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import stages
from migrator.base import log
from migrator.errors import MigratorError
from migrator.errors.data import NoSpace
from migrator.host import btrfs
from migrator.record import grant
from migrator.record.grant import Grant
from migrator.record.journal import DEFAULT_PATH, Journal
from migrator.remote.answering import Handlers, Receivers, Service
from migrator.transfer import messages, spool
from migrator.transfer.live_import import Behind
from migrator.transfer.messages import Transfer
from migrator.transfer.rpc import Connection, Fields, Handler, Takeover
from migrator.transfer.serve_requests import serve
from migrator.transfer.stream import FileStream
from migrator.transfer.wire_codec import Answer, Request, decoded
from stages.steps import arguments

NAME = "serve"
HELP = "answer the other host (which starts this over SSH)"
# After that many seconds of silence the source is considered dead and its lock on the container is released: as many as
# the source itself waits for us (--timeout), within these limits.
SILENCE_LEAST, SILENCE_MOST = 5.0, 300.0

COMMANDS = ("migrator serve", "sudo -n -- migrator serve")  # what `migrator.remote.ssh` asks for

Decoding = Callable[[Service, dict[str, Any]], Answer | Takeover]


@dataclasses.dataclass(frozen=True)
class ServeOptions:
    only: str | None = None
    peer: str | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    limited = parser.add_mutually_exclusive_group()
    limited.add_argument("--only", metavar="WORDS", help="allow only that: for a line in authorized_keys")
    limited.add_argument("--peer", metavar="ID", help="allow what this paired peer may (used by the agent)")


def options(args: argparse.Namespace) -> ServeOptions:
    return ServeOptions(args.only, args.peer)


def run(options: ServeOptions) -> None:
    arguments.require_root(NAME)
    log.level = min(log.level, log.Level.QUIET)
    granted = partial(grant_of, options)
    with contextlib.ExitStack() as stack:
        service = Service(stack.enter_context(Journal(DEFAULT_PATH)), stack, granted())
        connection = stack.enter_context(Connection(FileStream.from_stdio()))
        connection.hello()
        connection.adopt_timeout(SILENCE_LEAST, SILENCE_MOST)
        serve(connection, handlers(service, granted))


def grant_of(options: ServeOptions) -> Grant:
    """What the other side may do; raises UsageError, NotAllowed and TunnelFileUnusable."""
    if options.only is not None:
        granted = grant.of_only(options.only)
        asked = os.environ.get("SSH_ORIGINAL_COMMAND", "")
        if "SSH_CONNECTION" in os.environ and asked not in COMMANDS:
            raise granted.refusal(f"its key is only for `migrator serve`, but it asked for {asked[:100]!a}")
        return granted
    if options.peer is not None:
        return grant.of_peer_id(bytes.fromhex(options.peer))
    return grant.ROOT


def handlers(service: Service, granted: Callable[[], Grant] | None = None) -> dict[str, Handler]:
    """All operations that stages answer, and the transfer that brings their data; each only if the caller may use it.

    `granted` is asked at each request what that is: a connection lasts as long as the other side wants, and meanwhile a
    peer may have been removed or its permissions reduced.
    """
    found: dict[str, Decoding] = {Transfer.op: transfer}
    for stage in stages.load_all():
        of_stage: Handlers = getattr(stage, "HANDLERS", {})
        found |= {message.op: partial(_decoded, message, handler) for message, handler in of_stage.items()}
    return {op: partial(_allowed, service, granted, op, handler) for op, handler in found.items()}


def _decoded(message: type[Request[Any]], handler: Callable[[Service, Any], Answer | Takeover], service: Service,
             fields: dict[str, Any]) -> Answer | Takeover:
    return handler(service, decoded(message, fields))


def _allowed(service: Service, granted: Callable[[], Grant] | None, op: str,
             handler: Decoding, fields: dict[str, Any]) -> Answer | Takeover:
    if granted:
        service.grant = granted()
    service.grant.check(op)
    try:
        done = handler(service, fields)
    finally:
        service.end_request()
    return dataclasses.replace(done, run=partial(_to_its_end, service, done)) if isinstance(done, Takeover) else done


def _to_its_end(service: Service, takeover: Takeover, connection: Connection) -> Fields:
    try:
        return takeover.run(connection)
    finally:
        service.end_request()


def transfer(service: Service, fields: dict[str, Any]) -> Takeover:
    """Receive streams of a kind that a stage has a receiver for."""
    asked = messages.transfer(fields)
    receivers: Receivers = {}
    for stage in stages.load_all():
        receivers |= getattr(stage, "RECEIVERS", {})
    place = receivers[type(asked)](service, asked)
    takeover = spool.receive(place.folder, asked.files, durable=place.durable, accepts=place.accepts,
                             watcher=place.behind, bounds=place.bounds)
    return dataclasses.replace(takeover, run=partial(_whole_or_not, service, place.behind, takeover))


def _whole_or_not(service: Service, behind: Behind | None, takeover: Takeover,
                  connection: Connection) -> Fields:
    """If there is no room for a stream, what its import has made so far is removed at once: others need room too."""
    try:
        return takeover.run(connection)
    except NoSpace:
        if behind and service.end_behind():
            with contextlib.suppress(MigratorError):  # otherwise the next import does it
                btrfs.delete(behind.target)
        raise
