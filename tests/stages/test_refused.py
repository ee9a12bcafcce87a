# SPDX-License-Identifier: GPL-2.0-or-later
"""An offer that the destination refuses, for good: the container is given back, whatever the journal does."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import signal

import pytest

from migrator.config import container_config
from migrator.copies import origins
from migrator.errors import Interrupted
from migrator.errors.connection import ConnectionLost
from migrator.errors.memory import DumpRefused
from migrator.errors.outcomes import SourceRunsAgain, SourceStartedAgain, SourceStateUnknown
from migrator.errors.this_host import JournalBroken
from migrator.record import transactions
from migrator.record.journal import Journal, Migration
from migrator.record.states import Event, Owner, State
from stages.steps import offer, thaw_again
from tests.stages.journals import dumping, journal, offered  # noqa: F401 -- a fixture
from tests.stages.offers import TAKEN_BACK, There, acts, connection, fence  # noqa: F401 -- a fixture

REFUSAL = DumpRefused(name="web", reason="it is incomplete")


def test_a_refusal_is_recorded_before_it_thaws(journal: Journal, acts: list[str]) -> None:
    migration = offered(journal)
    folder = fence(migration)
    with pytest.raises(SourceRunsAgain) as again:
        offer.make(migration, connection(There(REFUSAL)))
    assert again.value.cause is REFUSAL
    assert acts == TAKEN_BACK
    assert migration.state is State.PREPARED and migration.owner is Owner.SOURCE
    assert "it is incomplete" in migration.arrived.failed
    assert container_config.fence_of((folder / "config").read_text()) == ""
    with Journal(journal.path) as again_read:
        found = again_read.by_id(migration.id, migration.role)
        assert found and found.state is State.PREPARED
    assert [event.step for event in migration.events()][-2:] == ["refused", "thaw"]


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("failures", [1, 2])
def test_a_refusal_that_cannot_be_recorded_thaws_all_the_same(journal: Journal, acts: list[str], failures: int,
                                                              memory: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first time, or neither then nor when what has gone has made room. What was stopped may need that to start."""
    migration = offered(journal)
    migration.note("memory", memory=memory)
    fence(migration)
    honest, left = Migration.move, [failures]

    def move(self: Migration, event: Event, **detail: object) -> None:
        if left[0]:
            left[0] -= 1
            raise JournalBroken(path=journal.path, reason="database or disk is full")
        honest(self, event, **detail)

    monkeypatch.setattr(Migration, "move", move)
    monkeypatch.setattr(origins, "is_there", lambda _: True)
    with pytest.raises(SourceRunsAgain if memory else SourceStartedAgain):
        offer.make(migration, connection(There(REFUSAL)))
    made_room = [] if memory else TAKEN_BACK[1:3]
    assert acts == [*made_room, "thawed, offered on record", *TAKEN_BACK[1:]]
    assert migration.state is (State.PREPARED if failures == 1 else State.OFFERED)


def test_who_has_the_journal_locked_is_not_waited_for_when_it_is_refused(journal: Journal, acts: list[str],
                                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    migration = offered(journal)
    waits: list[float] = []
    monkeypatch.setattr(journal, "_wait_for", waits.append)
    fence(migration)
    with pytest.raises(SourceRunsAgain):
        offer.make(migration, connection(There(REFUSAL)))
    assert waits[0] == transactions.HURRY and len(waits) == 2 and acts == TAKEN_BACK


@pytest.mark.parametrize("memory", [True, False])
def test_a_second_signal_comes_once_it_runs(journal: Journal, acts: list[str], monkeypatch: pytest.MonkeyPatch,
                                            memory: bool) -> None:
    """And not when the refusal is on record, and it stands still. A start takes long, and is not kept from it."""
    migration = offered(journal)
    migration.note("memory", memory=memory)
    fence(migration)
    honest = Migration.move

    def move(self: Migration, event: Event, **detail: object) -> None:
        honest(self, event, **detail)
        if event is Event.REFUSED:
            signal.raise_signal(signal.SIGTERM)

    signal.signal(signal.SIGTERM, lambda *_: acts.append("signal"))
    monkeypatch.setattr(Migration, "move", move)
    with pytest.raises(SourceRunsAgain if memory else SourceStartedAgain):
        offer.make(migration, connection(There(REFUSAL)))
    first = [TAKEN_BACK[0], "signal"] if memory else ["signal", TAKEN_BACK[0]]
    assert acts == [*first, *TAKEN_BACK[1:]]


def test_what_fails_before_an_offer_is_told_as_it_is(journal: Journal) -> None:
    """Unless one is on record already: then the container may be with the destination."""
    migration, error = dumping(journal), ConnectionLost(destination="hostb", reason="cut")
    with pytest.raises(ConnectionLost), offer.undecided(migration):
        raise error
    migration.move(Event.OFFER)
    with pytest.raises(SourceStateUnknown) as unknown, offer.undecided(migration):
        raise error
    assert unknown.value.cause is error


@pytest.mark.parametrize(("thawed", "there"), [(True, True), (True, False), (False, True), (False, False)])
def test_a_ctrl_c_says_what_has_become_of_it(journal: Journal, acts: list[str], monkeypatch: pytest.MonkeyPatch,
                                             capfd: pytest.CaptureFixture[str], thawed: bool, there: bool) -> None:
    """It was destroyed meanwhile, or not; it had not been stopped yet."""
    migration = dumping(journal)
    fence(migration)
    monkeypatch.setattr(thaw_again, "thaw_source", lambda _: thawed)
    monkeypatch.setattr(origins, "is_there", lambda _: there)
    with pytest.raises(Interrupted):
        offer.give_up(migration, connection(There({})), Interrupted(signal="SIGINT", number=2))
    said = " ".join(capfd.readouterr().err.split())
    assert ("web keeps running here" in said) is (thawed or there)
    assert ("what web writes from now on may be lost when it ends" in said) is (thawed and not there)
