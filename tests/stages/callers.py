# SPDX-License-Identifier: GPL-2.0-or-later
"""A host that answers callers who are not root, and a migration that goes out from it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from migrator.host import lxc
from migrator.preflight.facts.host_facts import Query
from migrator.record import container_lock, grant, image_folders
from migrator.record.grant import Grant
from migrator.record.journal import Journal, Migration
from migrator.record.migration_paths import Layout
from migrator.record.states import Event, Role, State
from migrator.remote.answering import Service
from migrator.transfer.rpc import Takeover
from stages import serve
from tunnel.identity.own_identity import Identity
from tunnel.identity.peers import Peer

ID, OTHER = "0badc0de", "00000002"
UUID = "01234567-89ab-cdef-0123-456789abcdef"
HOSTA, HOSTC = (Identity.generate().public for _ in range(2))


def peer(name: str = "hosta", *allowed: str) -> Grant:
    public = {"hosta": HOSTA, "hostc": HOSTC}[name]
    return grant.of_peer(Peer(name, public, (), 0.0, allowed))


class Here:
    """A host that answers callers, with everything that it keeps in a folder of the test's."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.pool, self.second = folder / "pool", folder / "second"
        self.pool.mkdir()
        self.second.mkdir()
        self.stack = stack
        self.journal = stack.enter_context(Journal(folder / "journal.db"))
        self.layout = Layout(self.pool, "web", ID)

    def caller(self, granted: Grant) -> Callable[..., Any]:
        """What asks over a connection of that caller's, which locks nothing any more when it has the answer."""
        service = Service(self.journal, self.stack, granted)
        kept: dict[Any, contextlib.ExitStack] = {}

        def ask(op: str, *, stays: bool = False, **fields: Any) -> Any:
            honest = {
                "id": ID, "name": "web", "lxcpath": str(self.pool), "lxcpath_given": False, "source_host": "hosta",
                "source_lxcpath": "/pool", "destination": "peer:hostb", "config": "lxc.uts.name = web\n",
                "includes": {}, "bridges": {}, "disk_bytes": 1000, "mapped_root": 0, "round": 1, "uuid": UUID,
                "bytes": 1000, "attempt": 1, "dad": {}, "limit": 1.0, "kind": "disk", "files": [],
                "query": msgspec.to_builtins(Query("/")),
            }
            with contextlib.ExitStack() as locks:
                service._stack, service._locked = (self.stack, kept) if stays else (locks, {})
                answer = serve.handlers(service)[op](honest | fields)
                return answer if isinstance(answer, Takeover) else json.loads(msgspec.json.encode(answer))

        return ask

    def begun(self, granted: Grant, id_: str = ID, **fields: Any) -> Callable[..., Any]:
        ask = self.caller(granted)
        assert ask("begin", id=id_, **fields)["state"] == State.RECEIVING
        return ask


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    monkeypatch.setattr(image_folders, "RUNTIME", tmp_path / "run")
    monkeypatch.setattr(container_lock, "LOCKS", tmp_path / "run" / "lock")
    monkeypatch.setattr(lxc, "default_lxcpath", lambda: tmp_path / "pool")
    monkeypatch.setattr("migrator.remote.answering.REST", 0.0)
    with contextlib.ExitStack() as stack:
        yield Here(tmp_path, stack)


# What is said about one migration, and so to who has begun it.
OF_A_MIGRATION = ["abandon", "begin", "dump-begin", "dump-drop", "finish", "import", "own", "received", "restore",
                  "running", "state", "transfer"]
HOOK = "lxc.uts.name = web\nlxc.hook.start-host = /bin/sh /evil\n"


def goes_out(here: Here, peer_: str = "peer:hosta", **detail: object) -> Migration:
    return here.journal.create(id=ID, role=Role.SOURCE, name="db", lxcpath=here.second, peer=peer_, event=Event.SEND,
                               destination_host="hosta", **detail)


def dumped(migration: Migration) -> Migration:
    for event in (Event.SENT, Event.FREEZE, Event.OFFER, Event.TAKEN):
        migration.move(event)
    return migration
