# SPDX-License-Identifier: GPL-2.0-or-later
"""From the stand-still to the offer: who watches over the container meanwhile, and what a failure does at each step."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

from typing import cast

import pytest

from migrator.base.result import Result
from migrator.errors.containers import ContainerNotRunning
from migrator.errors.memory import DowntimeExceeded
from migrator.errors.outcomes import SourceRunsAgain, SourceStateUnknown, SourceStillFrozen
from migrator.errors.this_host import JournalBroken
from migrator.host import lxc
from migrator.record.journal import Migration
from migrator.record.states import Event, State
from migrator.transfer.rpc import Connection
from stages.steps import examine, freeze_and_offer, thaw_again
from stages.steps.options import MoveRequest, NamedContainer, StandstillOptions
from stages.steps.reconnect import Link
from tests.stages.handovers import Plain, migration, thawed  # noqa: F401 -- fixtures
from tests.stages.journals import journal  # noqa: F401 -- a fixture
from tests.stages.offers import There


def test_it_is_watched_until_the_offer_is_on_record(migration: Migration) -> None:
    made = Plain(migration)
    made.run()
    assert made.done == ["take, dumping", "stop clock, dumping", "unwatched, offered"]
    assert migration.state is State.DUMPED


@pytest.mark.parametrize("step", ["take", "stop clock"])
def test_what_was_never_offered_needs_no_journal_to_be_thawed(migration: Migration, thawed: list[State], step: str,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise JournalBroken(path="journal.db", reason="disk I/O error")

    made = Plain(migration, step)
    honest = made._do

    def do(what: str) -> None:
        if what == step:
            monkeypatch.setattr(Migration, "move", broken)
            monkeypatch.setattr(Migration, "refresh", broken)
        honest(what)

    monkeypatch.setattr(made, "_do", do)
    with pytest.raises(SourceRunsAgain):
        made.run()
    assert thawed == [State.DUMPING] and made.done[-2:] == ["unwatched, dumping", "left alone, dumping"]


def test_what_may_be_offered_does(migration: Migration, thawed: list[State], monkeypatch: pytest.MonkeyPatch) -> None:
    """The record of the offer fails, and then it cannot be read whether it is there: the journal decides, in time."""
    honest = Migration.move

    def broken(*_: object, **__: object) -> None:
        raise JournalBroken(path="journal.db", reason="disk I/O error")

    monkeypatch.setattr(Migration, "move", lambda self, event, **detail: (
        broken if event is Event.OFFER else honest)(self, event, **detail))
    monkeypatch.setattr(Migration, "refresh", broken)
    made = Plain(migration)
    with pytest.raises(SourceStateUnknown, match="disk I/O error"):
        made.run()
    assert thawed == [] and made.done[-1] == "left alone, dumping"


def test_who_cannot_thaw_leaves_it_to_the_watchdog(migration: Migration, monkeypatch: pytest.MonkeyPatch) -> None:
    def stuck(_: Migration) -> bool:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(thaw_again, "thaw_source", stuck)
    made = Plain(migration, "stop clock", DowntimeExceeded(name="web", seconds="120"))
    with pytest.raises(SourceStillFrozen):
        made.run()
    assert made.done[-1] == "left alone, dumping"


# --- before it --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", [True, False])
@pytest.mark.parametrize("state", ["FROZEN", "STOPPED", "RUNNING"])
def test_what_somebody_has_brought_to_a_stand_since_the_preflight_is_not_handed_over(
        migration: Migration, monkeypatch: pytest.MonkeyPatch, state: str, driver: bool) -> None:
    """The rounds may have taken hours: it would be thawed on either host."""
    done: list[str] = []

    class Begun:
        def run(self) -> Result:
            done.append("begun")
            return Result({}, "")

    container = lxc.Container.__new__(lxc.Container)
    container.name, container.lxcpath = migration.name, migration.lxcpath
    monkeypatch.setattr(lxc.Container, "state", state)
    monkeypatch.setattr(freeze_and_offer, "_refuse_changed", lambda *_: None)
    monkeypatch.setattr(freeze_and_offer, "require_stable_path", lambda _: None)
    monkeypatch.setattr(freeze_and_offer, "way_of", lambda *_: None)
    monkeypatch.setattr(freeze_and_offer, "Handover", lambda *_: Begun())
    monkeypatch.setattr(examine, "before_stage", lambda *_, **__: done.append("preflight"))
    migration.note("begun", bridges={})
    there = There({"state": State.IMPORTED, "ticket": ""})
    request = MoveRequest(NamedContainer("web"), "root@hostb")
    link = Link(request.connect, request.destination, 0.0) if driver else None

    def carry_out() -> None:
        freeze_and_offer.carry_out(request, StandstillOptions(), migration, container, cast("Connection", there),
                                   link=link)

    if state == "RUNNING":
        carry_out()
        assert done == ["preflight", "begun"]
    else:
        with pytest.raises(ContainerNotRunning, match=state) as raised:
            carry_out()
        assert done == ["preflight"] and f"lxc-unfreeze -P {migration.lxcpath} web" in raised.value.hint
        assert migration.state is State.PREPARED
