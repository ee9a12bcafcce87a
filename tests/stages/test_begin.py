# SPDX-License-Identifier: GPL-2.0-or-later
"""The source begins a migration, and the beginning breaks at any point: both hosts know of it, or neither does."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from migrator.copies import bases
from migrator.errors import MigratorError
from migrator.errors.connection import DestinationInvalid, ProtocolError
from migrator.errors.containers import AlreadyMigrating, InvalidName
from migrator.errors.data import SnapshotFailed
from migrator.errors.this_host import JournalBroken
from migrator.record.journal import Journal, Migration
from migrator.record.states import Event, Role, State
from migrator.remote.tunnelled import Opened
from migrator.transfer.messages import Begun
from migrator.transfer.rpc import Connection
from migrator.transfer.wire_codec import Request
from stages.steps import send_disk
from stages.steps.options import MoveRequest, NamedContainer
from tests.migrator.wire import by_op
from tests.stages.answering import ID, Destination, pool, there  # noqa: F401 -- fixtures
from tests.stages.asks import begins
from tunnel.identity.own_identity import Identity
from tunnel.identity.peers import Peer

# ruff: noqa: F811 -- fixtures

REQUEST = MoveRequest(NamedContainer("web"), "root@hostb")


class There:
    """The destination, which may answer with an error."""

    peer_host = "hostb"

    def __init__(self, destination: Destination) -> None:
        self.destination = destination

    @by_op
    def call(self, op: str, **fields: Any) -> Any:
        return self.destination.ask(op, **fields)

    def call_within(self, _: float, message: Request[Any]) -> Any:
        return self.call(message)


def begin(journal: Journal, there: Destination, pool: Path, tunnel: Any = None) -> tuple[Migration, Begun]:
    asks = begins(pool, source_name="web", source_lxcpath=str(pool), origin=ID)
    reached: Any = There(there)
    reached.tunnel = tunnel
    return send_disk._begin(REQUEST, None, journal, None, reached, asks)


def broken_settle(*_: object) -> None:
    raise SnapshotFailed(path="/pool", reason="a file system that was made read-only")


def test_bases_that_cannot_be_settled_stop_nothing(there: Destination, pool: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """On either host: the attempt has been recorded there by then."""
    monkeypatch.setattr(bases, "settle", broken_settle)
    with Journal(pool / "source.db") as journal:
        migration, _ = begin(journal, there, pool)
        assert journal.by_id(ID, Role.SOURCE) and migration.state is State.PREPARING
    assert there.state is State.RECEIVING


def test_a_destination_whose_record_fails_has_none(there: Destination, pool: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """The row is not there without the event, which are two statements."""
    honest = Migration._insert_event
    with monkeypatch.context() as patch:
        def full(*_: object) -> None:
            raise JournalBroken(path="journal.db", reason="database or disk is full")

        patch.setattr(Migration, "_insert_event", full)
        with pytest.raises(JournalBroken):
            there.ask("begin")
    assert there.state is None and Migration._insert_event is honest
    there.ask("begin", id="00000001")


@pytest.mark.parametrize(("error", "there_too", "remembered"), [
    (AlreadyMigrating(name="web", peer="hosta", id="00000001", next=""), False, False),  # it refuses at once
    (JournalBroken(path="journal.db", reason="full"), True, True),
    (MigratorError(reason="anything that came after the record"), True, True),
])
def test_the_source_forgets_only_what_the_destination_has_not_recorded(
    there: Destination, pool: Path, monkeypatch: pytest.MonkeyPatch, error: MigratorError, there_too: bool,
    remembered: bool,
) -> None:
    @by_op
    def call(self: There, op: str, **fields: Any) -> Any:
        if op == "begin":
            if there_too:
                self.destination.ask(op, **fields)
            raise error
        return self.destination.ask(op, **fields)

    monkeypatch.setattr(There, "call", call)
    with Journal(pool / "source.db") as journal:
        with pytest.raises(type(error)):
            begin(journal, there, pool)
        assert bool(journal.by_id(ID, Role.SOURCE)) is remembered


def test_what_a_destination_does_not_tell_is_remembered(there: Destination, pool: Path,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    @by_op
    def call(*_: object, **__: object) -> Any:
        raise AlreadyMigrating(name="web", peer="hosta", id="00000001", next="") if _[1] == "begin" else MigratorError(
            reason="no answer")

    monkeypatch.setattr(There, "call", call)
    with Journal(pool / "source.db") as journal:
        with pytest.raises(AlreadyMigrating):
            begin(journal, there, pool)
        assert journal.by_id(ID, Role.SOURCE)


@pytest.mark.parametrize("through", ["a tunnel", "SSH"])
def test_a_peer_is_recorded_by_its_fingerprint(there: Destination, pool: Path, through: str) -> None:
    """Its name may be another host's by the time that somebody asks under it."""
    public = Identity.generate().public
    tunnel = Opened(Any, SimpleNamespace(peer=Peer("hostb", public, (), 0.0)))  # type: ignore[arg-type]
    with Journal(pool / "source.db") as journal:
        migration, _ = begin(journal, there, pool, tunnel if through == "a tunnel" else None)
        recorded = migration.begun.destination_fingerprint
        assert recorded == (public.fingerprint if through == "a tunnel" else "")


def test_an_event_stands_beside_the_first_record(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.db") as journal:
        made = journal.create(id=ID, role=Role.SOURCE, name="web", lxcpath=tmp_path, peer="hostb", event=Event.SEND)
        assert [(each.step, each.phase) for each in made.events()] == [("send", "done")]


LINES = "/pool\n\nImported. hosta has lost its disk, so type: migrator restore-dump web --force"


@pytest.mark.parametrize("answer", [LINES, "pool", "/pool/../etc", "", ["/pool"], {"a": 1}, None, 7])
def test_a_destination_answers_a_path_where_one_is_asked_for(answer: object) -> None:
    """It is written into commands that this host names, where its lines would pass for this host's own."""
    honest = cast("Connection", SimpleNamespace(call=by_op(lambda _, lxcpath: {"lxcpath": lxcpath})))
    liar = cast("Connection", SimpleNamespace(call=by_op(lambda *_, **__: {"lxcpath": answer})))
    assert send_disk.lxcpath_there(honest, "/srv/a b") == "/srv/a b"
    with pytest.raises(InvalidName if isinstance(answer, str) else ProtocolError):
        send_disk.lxcpath_there(liar, "/pool")


@pytest.mark.parametrize("called", ["peer:hostb'\n" + LINES, "-oProxyCommand=x", "root@hostb\x1b[2J", "", "peer:"])
def test_a_source_says_a_name_where_it_says_what_it_calls_this_host(there: Destination, called: str) -> None:
    with pytest.raises(DestinationInvalid):
        there.ask("begin", destination=called)
    assert there.journal.all() == []


@pytest.mark.parametrize("called", ["hostb", "ssh://root@hostb:2222", "root@[fd00::1]:22", "peer:hostb"])
def test_it_is_recorded_as_it_was_typed_there(there: Destination, called: str) -> None:
    there.ask("begin", destination=called)
    (migration,) = there.journal.all()
    assert migration.begun.destination == called
