# SPDX-License-Identifier: GPL-2.0-or-later
"""A source that has offered the token to hostb, and two hosts that may be the one that answers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from migrator.record.journal import Journal, Migration
from migrator.record.states import Event, Role
from migrator.remote.answering import Service
from migrator.transfer.wire_codec import Request
from stages.steps import give_back
from tests.migrator.wire import by_op
from tests.stages.answering import ID, Destination


class Host:
    """One that is connected to; its answers are those of the handlers."""

    def __init__(self, name: str, destination: Destination) -> None:
        self.peer_host = name
        self.tunnel = None
        self.destination = destination

    def call_within(self, _: float, message: Request[Any]) -> Any:
        return self.call(message)

    def call(self, message: Request[Any]) -> Any:
        return by_op(self.ask)(message)

    def ask(self, op: str, **fields: Any) -> Any:
        with contextlib.ExitStack() as connection:
            self.destination.service = Service(self.destination.journal, connection)
            return self.destination.ask(op, **fields)


Hosts = dict[str, Host]


@pytest.fixture
def hosts(pool: Path) -> Iterator[Hosts]:
    with contextlib.ExitStack() as stack:
        made = {}
        for name in ("hostb", "hostc"):
            (pool / name).mkdir()
            journal = stack.enter_context(Journal(pool / name / "journal.db"))
            made[name] = Host(name, Destination(journal, stack, pool / name))
        yield made


@pytest.fixture
def source(pool: Path, hosts: Hosts) -> Iterator[Migration]:
    """It has offered the token to hostb."""
    with Journal(pool / "journal.db") as journal:
        migration = journal.create(id=ID, role=Role.SOURCE, name="web", lxcpath=pool, peer="root@hostb",
                                   event=Event.SEND, destination_host="hostb", rounds=[{"bytes": 1}],
                                   destination_lxcpath=str(pool / "hostb"))
        begun = hosts["hostb"].ask("begin")
        migration.move(Event.SEND, ticket=begun.get("ticket", ""))
        for event in (Event.SENT, Event.FREEZE, Event.OFFER):
            migration.move(event)
        yield migration


def tell(migration: Migration, host: Host) -> str:
    return give_back.tell(migration, host)  # type: ignore[arg-type]


def lost(hosts: Hosts) -> None:
    """hostb answers from an empty journal, whatever runs there."""
    journal = hosts["hostb"].destination.journal
    migration = journal.by_id(ID, Role.DESTINATION)
    assert migration
    journal.forget(migration)
