# SPDX-License-Identifier: GPL-2.0-or-later
"""An offer with which the container is to be let run at once, over a connection whose other end may have given up."""

from __future__ import annotations

import contextlib
import math
from types import SimpleNamespace
from typing import Any, cast

import pytest

from migrator.base import boot_clock
from migrator.copies import resume_rules
from migrator.copies.leave import Leave
from migrator.errors import MigratorError
from migrator.errors.connection import ConnectionLost, ProtocolError
from migrator.errors.memory import DowntimeExceeded, RestoreFailed
from migrator.record.detail import Handover
from migrator.record.journal import Migration
from migrator.record.states import Role, State
from migrator.transfer import messages
from migrator.transfer.frames import Frame, Kind
from migrator.transfer.messages import Own, Restored
from migrator.transfer.rpc import Connection, Handler, Takeover
from stages import serve
from stages.steps import ask_source, restore_over
from tests.migrator.wire import call, connected
from tests.stages.answering import ID, Destination, arrives, at_the_dump, pool, there

__all__ = ["pool", "there"]


class Restore:
    """In the place of restore_dump's: a restore that is prepared, and lets run once it has leave."""

    did: list[str]

    def __init__(self, migration: Any, limit: float, service: Any, *, leave: Any) -> None:
        self.migration, self.leave = migration, leave

    def run(self, *, wait: bool) -> None:
        self.did.append("prepared")
        if self.leave() > boot_clock.now():
            self.did.append("let run")
        self.migration.note("restored", restored_at=0.0)


OWN, RESTORE = Own(id=ID, attempt=1, dad={}), messages.Restore(id=ID, limit=60.0)


@pytest.fixture
def did(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(restore_over, "Restore", Restore)
    monkeypatch.setattr(Restore, "did", [], raising=False)
    return Restore.did


def offer(there: Destination) -> dict[str, Any]:
    at_the_dump(there)
    arrives(there)
    return {"id": ID, "attempt": 1, "dad": {}, "restore_within": 60.0}


class Silent(Connection):
    """The destination's end, over which the source says what it is given."""

    def __init__(self, said: list[Kind]) -> None:
        self.said, self.timeout = said, 1.0

    def receive(self, room: Any = None, *, within: float | None = None) -> Any:
        assert within is not None, "it does not wait for ever"
        if not self.said:
            raise ConnectionLost(destination="hosta", reason="there was no sign of life for 1 seconds")
        return Frame(self.said.pop(0), 0, memoryview(b'{"within": 60}'))


def take(there: Destination, said: list[Kind]) -> Any:
    """What comes of an offer when the source says this after the first answer."""
    taken = serve.handlers(there.service)["own"](offer(there))
    assert isinstance(taken, Takeover), "it restores without asking"
    assert taken.reply == Restored(state=State.OWNED) and there.state is State.OWNED, "on disk before it is said"
    return taken.run(Silent(said))


def test_a_source_that_waits_has_it_run(there: Destination, did: list[str]) -> None:
    assert take(there, [Kind.GO]).state == State.OWNED
    assert did == ["prepared", "let run"]


def test_a_word_that_was_heard_too_late_lets_nothing_run(there: Destination, did: list[str],
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """It had lain in the pipe, as did the offer: this program stood still after its first answer."""
    taken = serve.handlers(there.service)["own"](offer(there))
    now = boot_clock.now()
    monkeypatch.setattr(boot_clock, "now", lambda: now + 61)
    assert isinstance(taken, Takeover)
    taken.run(Silent([Kind.GO]))
    assert did == ["prepared"]


@pytest.mark.parametrize("waits", [True, False])
def test_by_hand_only_a_source_that_waits_is_not_asked_again(there: Destination, waits: bool) -> None:
    """An offer that has lain in a pipe for hours gives whoever types restore-dump no time at all."""
    asked = {key: value for key, value in offer(there).items() if key != "restore_within"}
    taken = serve.handlers(there.service)["own"](asked)
    assert isinstance(taken, Takeover) and there.state is State.OWNED
    with contextlib.nullcontext() if waits else pytest.raises(ConnectionLost):
        taken.run(Silent([Kind.GO] if waits else []))
    migration = there.journal.by_id(ID, Role.DESTINATION)
    assert migration
    left = boot_clock.left(migration.handover.leave)
    assert (left is not None and left > 0) is waits
    assert resume_rules.must_ask(left) is True, "60 seconds are no more than a restore may take"


def test_a_pause_does_not_prolong_what_is_on_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """This program is stopped, or the host sleeps, right behind the look at it."""
    now = [1000.0]
    monkeypatch.setattr(boot_clock, "now", lambda: now[0])
    honest = boot_clock.left

    def left(stamped: boot_clock.Moment | None) -> float | None:
        found = honest(stamped)
        now[0] += 3600.0
        return found

    monkeypatch.setattr(boot_clock, "left", left)
    migration = SimpleNamespace(handover=Handover(leave=boot_clock.until(1400.0, 600.0)))
    assert ask_source.leave_for(ask_source.QUICKLY, cast("Migration", migration), 120.0, by_hand=True) == 1400.0


def test_a_late_offer_lets_nothing_run(there: Destination, did: list[str]) -> None:
    with pytest.raises(ConnectionLost):
        take(there, [])
    assert did == ["prepared"] and there.state is State.OWNED


@pytest.mark.parametrize("waits", [True, False])
def test_a_late_request_to_restore_neither(there: Destination, did: list[str], waits: bool) -> None:
    serve.handlers(there.service)["own"]({key: value for key, value in offer(there).items() if key != "restore_within"})
    asked = serve.handlers(there.service)["restore"]({"id": ID, "limit": 60.0})
    assert isinstance(asked, Takeover), "it restores without asking"
    with contextlib.nullcontext() if waits else pytest.raises(ConnectionLost):
        asked.run(Silent([Kind.GO] if waits else []))
    assert did == ["prepared", *(["let run"] if waits else [])]


@pytest.mark.parametrize("limit", ["nan", "60", None, math.nan, math.inf, [60.0]], ids=repr)
def test_a_restore_has_a_limit(there: Destination, did: list[str], limit: object) -> None:
    serve.handlers(there.service)["own"]({key: value for key, value in offer(there).items() if key != "restore_within"})
    with pytest.raises(ProtocolError, match="limit"):
        serve.handlers(there.service)["restore"]({"id": ID, "limit": limit})
    assert did == [] and there.state is State.OWNED


def test_anything_else_is_no_leave(there: Destination, did: list[str]) -> None:
    with pytest.raises(ProtocolError, match="REQUEST"):
        take(there, [Kind.REQUEST])
    assert did == ["prepared"]


def test_both_ends(did: list[str]) -> None:
    """The word is read also where the restore fails, so that the next request is understood."""
    def own(fields: dict[str, Any]) -> Takeover:
        def fails(_service: object, _asked: object, _leave: object) -> dict[str, Any]:
            raise RestoreFailed(name="web", reason="CRIU says no", log="x")

        def run(connection: Connection) -> Restored:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(restore_over, "restore_for_source", fails)
                return restore_over.with_leave(None, RESTORE, Leave(connection, boot_clock.now()))  # type: ignore[arg-type]

        return Takeover({"state": "owned"}, run)

    handlers: dict[str, Handler] = {"own": own, "state": lambda _: {"state": "owned"}}
    with connected(handlers) as (connection, _):
        with pytest.raises(RestoreFailed):
            connection.call_and_go(OWN, first=60, then=60, within=lambda: 60.0)
        assert call(connection, "state") == {"state": "owned"}


def test_whose_time_is_over_says_nothing() -> None:
    said: list[str] = []

    def own(_: dict[str, Any]) -> Takeover:
        def run(connection: Connection) -> dict[str, Any]:
            with contextlib.suppress(MigratorError):
                Leave(connection, boot_clock.now()).wait()
                said.append("go")
            raise ConnectionLost(destination="hosta", reason="gone")

        return Takeover({"state": "owned"}, run)

    def over() -> float:
        raise DowntimeExceeded(name="web", seconds="60")

    with connected({"own": own}) as (connection, _):
        with pytest.raises(DowntimeExceeded):
            connection.call_and_go(OWN, first=60, then=60, within=over)
        connection.close()
    assert said == []


def test_who_has_given_up_says_nothing() -> None:
    said: list[str] = []

    def own(_: dict[str, Any]) -> Takeover:
        def run(connection: Connection) -> dict[str, Any]:
            with contextlib.suppress(MigratorError):
                Leave(connection, boot_clock.now()).wait()
                said.append("go")
            raise ConnectionLost(destination="hosta", reason="gone")

        return Takeover({"state": "owned"}, run)

    with connected({"own": own}) as (connection, _):
        connection.request("own", {})
        connection.close()
    assert said == []
