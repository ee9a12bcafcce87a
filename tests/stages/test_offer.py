# SPDX-License-Identifier: GPL-2.0-or-later
"""The offer of the token: what each answer records, and in which order a failed attempt is taken back."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from migrator.base import boot_clock, bounded_read
from migrator.config import container_config
from migrator.copies import leave, origins
from migrator.criu import criu_dump
from migrator.errors import Interrupted, MigratorError
from migrator.errors.connection import ConnectionLost
from migrator.errors.documented import DocumentedError
from migrator.errors.memory import DowntimeExceeded, DumpFailed, DumpRefused
from migrator.errors.outcomes import (
    SourceRunsAgain,
    SourceStartedAgain,
    SourceStateUnknown,
    SourceStillFrozen,
    SourceStillStopped,
    SourceStoppedUnknown,
)
from migrator.errors.this_host import Busy, JournalBroken
from migrator.host import btrfs
from migrator.record.journal import Journal, Migration
from migrator.record.migration_paths import Layout
from migrator.record.states import Event, Owner, State
from migrator.transfer.messages import Restored
from stages.steps import offer, thaw_again
from tests.stages.journals import dumping, journal, offered  # noqa: F401 -- a fixture
from tests.stages.offers import TAKEN_BACK, There, acts, connection, fence  # noqa: F401 -- a fixture


@pytest.mark.parametrize("there", State)
@pytest.mark.parametrize("here", [State.DUMPING, State.OFFERED])
def test_a_lost_answer_is_told_by_the_destinations_state(journal: Journal, here: State, there: State) -> None:
    migration = dumping(journal) if here is State.DUMPING else offered(journal)
    offer.settle(migration, there)
    taken = here is State.OFFERED and there in (State.OWNED, State.RESTORING, State.RESTORED)
    assert migration.state is (State.DUMPED if taken else here)


def test_it_names_its_dump(journal: Journal) -> None:
    migration = offered(journal)
    assert offer.attempt(migration) == 0
    migration.note("attempt", attempt=3)
    assert offer.attempt(migration) == 3


@pytest.mark.parametrize(("within", "limits"), [
    (None, {"first": offer.ANSWER_LIMIT, "then": 2 * offer.ANSWER_LIMIT}),
    (30.0, {"first": 30.0, "then": 30.0 + offer.ANSWER_LIMIT}),
    (300.0, {"first": offer.ANSWER_LIMIT, "then": 300.0 + offer.ANSWER_LIMIT}),
])
def test_what_is_asked_and_answered(journal: Journal, within: float | None, limits: dict[str, float]) -> None:
    migration = offered(journal)
    migration.note("attempt", attempt=2, dad={"eth0": "1"}, leave=leave.given(None, 60.0))
    there = There({"state": State.OWNED})
    assert offer.make(migration, connection(there), restore_within=within) == Restored(state=State.OWNED)
    more = {} if within is None else {"restore_within": within}
    assert there.asked == [("own", limits, {"id": "0badc0de", "attempt": 2, "dad": {"eth0": "1"}} | more)]
    assert migration.state is State.DUMPED and migration.owner is Owner.DESTINATION
    assert 0 < there.told <= 60


def test_without_addresses_there_is_nothing_to_bring_back(journal: Journal) -> None:
    migration = offered(journal)
    migration.note("attempt", leave=leave.given(None, 60.0))
    there = There({})
    offer.make(migration, connection(there))
    assert there.asked[0][2]["dad"] == {}


@pytest.mark.parametrize("seconds", [0.5, 60.0])
def test_for_how_long_it_may_go_on(journal: Journal, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr(boot_clock, "now", lambda: 1000.0)
    migration = offered(journal)
    migration.note("attempt", leave=leave.given(None, seconds))
    assert offer.word(migration) == seconds


def test_nobody_goes_on_when_the_word_is_over(journal: Journal, acts: list[str]) -> None:
    migration = offered(journal)
    migration.note("attempt", leave=leave.given(None, 0.0))
    there = There({"state": State.OWNED})
    with pytest.raises(SourceStateUnknown) as unknown:
        offer.make(migration, connection(there), restore_within=30.0)
    assert isinstance(unknown.value.cause, DowntimeExceeded) and unknown.value.cause.fields["seconds"] == "0"
    assert there.told == -1.0 and migration.state is State.OFFERED and acts == []


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("error", [ConnectionLost(destination="hostb", reason="?"), Busy(name="web", pid=1),
                                   Interrupted(signal="SIGINT", number=2)], ids=lambda error: type(error).__name__)
def test_where_the_answer_does_not_come_it_stays_frozen(journal: Journal, acts: list[str], error: DocumentedError,
                                                        memory: bool) -> None:
    migration = offered(journal)
    migration.note("memory", memory=memory)
    with pytest.raises(SourceStateUnknown) as unknown:
        offer.make(migration, connection(There(error)))
    assert type(unknown.value) is (SourceStateUnknown if memory else SourceStoppedUnknown)
    assert unknown.value.cause is error and unknown.value.__cause__ is error
    assert migration.state is State.OFFERED and migration.owner is Owner.UNKNOWN and acts == []


def test_an_offer_that_was_not_made_is_none(journal: Journal) -> None:
    migration = offered(journal)
    stale = journal.by_id(migration.id, migration.role)
    assert stale
    stale.state = State.DUMPING  # a Ctrl-C has come between the record and this object's learning of it
    offer.withdraw(stale)
    assert stale.state is State.DUMPING
    migration.refresh()
    assert migration.state is State.DUMPING and migration.owner is Owner.SOURCE
    offer.withdraw(migration)
    assert migration.state is State.DUMPING


# --- the way back ---------------------------------------------------------------------------------------------


def given_up(migration: Migration, there: There, error: DocumentedError,
             thawed_again: Callable[[], None] | None = None) -> BaseException:
    with pytest.raises(BaseException) as raised:
        if thawed_again:
            offer.give_up(migration, connection(there), error, thawed_again)
        else:
            offer.give_up(migration, connection(there), error)
    return raised.value


def test_it_runs_before_anything_is_recorded_or_removed(journal: Journal, acts: list[str]) -> None:
    (migration := dumping(journal)).note("attempt", attempt=2, rounds=[{}, {}])
    folder = fence(migration)
    there = There({}, lambda: acts.append(f"told there, {migration.state} on record"))
    error = ConnectionLost(destination="hostb", reason="cut")
    raised = given_up(migration, there, error, lambda: acts.append("told the watchdog"))
    assert type(raised) is SourceRunsAgain and raised.cause is raised.__cause__ is error
    assert raised.fields["name"] == "web" and "migrator create-dump web" in raised.hint
    assert acts == ["thawed, dumping on record", "told the watchdog", "images dropped", "deleted 0badc0de.3",
                    "unfenced", "told there, prepared on record"]
    assert there.asked == [("dump-drop", {"within": offer.ANSWER_LIMIT}, {"id": "0badc0de", "attempt": 2})]
    assert migration.state is State.PREPARED and migration.arrived.failed == str(error)
    assert container_config.fence_of((folder / "config").read_text()) == ""


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("trouble", [OSError(5, "Input/output error"), MigratorError(reason="?")])
def test_what_does_not_thaw_stays_as_it_is(journal: Journal, acts: list[str], monkeypatch: pytest.MonkeyPatch,
                                           memory: bool, trouble: Exception) -> None:
    migration = dumping(journal)
    migration.note("memory", memory=memory)
    error = ConnectionLost(destination="hostb", reason="cut")

    def stuck(_: Migration) -> bool:
        raise trouble

    monkeypatch.setattr(thaw_again, "thaw_source", stuck)
    there = There({})
    raised = given_up(migration, there, error, lambda: pytest.fail("it does not run"))
    assert type(raised) is (SourceStillFrozen if memory else SourceStillStopped) and raised.__cause__ is error
    assert "migrator create-dump web" in raised.hint and "migrator rollback web" in raised.hint
    assert raised.fields["name"] == "web" and str(trouble.args[-1] if trouble.args else "") in str(raised)
    assert acts == [] and there.asked == [] and migration.state is State.DUMPING


def test_what_was_stopped_and_does_not_start_is_told_as_that(journal: Journal, acts: list[str],
                                                             monkeypatch: pytest.MonkeyPatch,
                                                             capfd: pytest.CaptureFixture[str]) -> None:
    migration = dumping(journal)
    stopped = SourceStillStopped(ConnectionLost(destination="hostb", reason="x"), name="web", source="hosta",
                                 next="", rollback="")

    def stuck(_: Migration) -> bool:
        raise stopped

    monkeypatch.setattr(thaw_again, "thaw_source", stuck)
    assert given_up(migration, There({}), DumpRefused(name="web", reason="of this")) is stopped
    assert acts == [] and migration.state is State.DUMPING
    assert "of this" in " ".join(capfd.readouterr().err.split()), "what began it is told too"


@pytest.mark.parametrize("step", ["images", "snapshot", "there", "fence", "record"])
@pytest.mark.parametrize("trouble", [OSError(28, "No space left on device"), MigratorError(reason="?")])
def test_what_resists_keeps_nothing_from_its_turn(journal: Journal, acts: list[str], monkeypatch: pytest.MonkeyPatch,
                                                  step: str, trouble: Exception) -> None:
    migration = dumping(journal)
    fence(migration)

    def fail(*_: object, **__: object) -> None:
        raise trouble

    there = There(trouble if step == "there" else {})
    if step == "images":
        monkeypatch.setattr(Layout, "drop_images", fail)
    elif step == "snapshot":
        monkeypatch.setattr(btrfs, "delete", fail)
    elif step == "fence":
        monkeypatch.setattr(container_config, "unfence", fail)
    elif step == "record":
        monkeypatch.setattr(Migration, "move", fail)
    assert type(given_up(migration, there, ConnectionLost(destination="hostb", reason="cut"))) is SourceRunsAgain
    left = {"images": "images dropped", "snapshot": "deleted 0badc0de.1", "fence": "unfenced"}
    assert acts == [act for act in TAKEN_BACK if act != left.get(step)]
    assert [op for op, *_ in there.asked] == ["dump-drop"]
    assert migration.state is (State.DUMPING if step in ("fence", "record") else State.PREPARED)


def test_a_ctrl_c_ends_as_one(journal: Journal, acts: list[str]) -> None:
    migration = dumping(journal)
    fence(migration)
    error = Interrupted(signal="SIGINT", number=2)
    assert given_up(migration, There({}), error) is error
    assert acts == TAKEN_BACK and migration.state is State.PREPARED


@pytest.mark.parametrize(("memory", "thawed", "there", "kind"), [
    (True, True, True, SourceRunsAgain),
    (True, False, True, SourceStartedAgain), (False, True, True, SourceStartedAgain),
    (False, False, True, None),  # it had not been stopped yet
    (True, False, False, None), (False, False, False, None),  # it was destroyed meanwhile
])
def test_what_has_become_of_it_is_told(journal: Journal, acts: list[str], monkeypatch: pytest.MonkeyPatch, memory: bool,
                                       thawed: bool, there: bool, kind: type[MigratorError] | None) -> None:
    migration = dumping(journal)
    migration.note("memory", memory=memory)
    fence(migration)
    monkeypatch.setattr(thaw_again, "thaw_source", lambda _: thawed)
    monkeypatch.setattr(origins, "is_there", lambda _: there)
    error = ConnectionLost(destination="hostb", reason="cut")
    raised = given_up(migration, There({}), error)
    assert (type(raised) is kind) if kind else (raised is error)


def test_a_long_reason_is_cut_on_record(journal: Journal, acts: list[str]) -> None:
    migration = dumping(journal)
    fence(migration)
    given_up(migration, There({}), ConnectionLost(destination="hostb", reason="x" * 5000))
    assert len(migration.arrived.failed) == 2000


@pytest.mark.parametrize("error", [DumpFailed(name="web", reason="?", log="gone", host="hosta"),
                                   ConnectionLost(destination="hostb", reason="cut")],
                         ids=lambda error: type(error).__name__)
def test_crius_log_outlives_its_images(journal: Journal, acts: list[str], monkeypatch: pytest.MonkeyPatch,
                                       tmp_path: Path, error: MigratorError) -> None:
    migration = dumping(journal)
    fence(migration)
    monkeypatch.setattr(criu_dump, "LOG_FOLDER", tmp_path / "log")
    images = Layout.of(migration).image_folders()[1]
    images.mkdir(parents=True)
    (images / "dump.log").write_bytes(bytes(bounded_read.LOG_LIMIT) + b"\nError: \xff\n")
    given_up(migration, There({}), error)
    kept = tmp_path / "log" / "web-dump.log"
    assert kept.exists() is isinstance(error, DumpFailed)
    if isinstance(error, DumpFailed):
        assert kept.read_text() == "Error: \ufffd\n" and kept.stat().st_mode & 0o777 == 0o600
        assert error.fields["log"] == kept


def test_without_a_log_there_is_none_to_keep(journal: Journal, acts: list[str], monkeypatch: pytest.MonkeyPatch,
                                             tmp_path: Path) -> None:
    migration = dumping(journal)
    fence(migration)
    monkeypatch.setattr(criu_dump, "LOG_FOLDER", tmp_path / "log")
    error = DumpFailed(name="web", reason="?", log="gone", host="hosta")
    given_up(migration, There({}), error)
    Layout.of(migration).image_folders()[1].mkdir(parents=True)
    migration.move(Event.FREEZE)
    given_up(migration, There({}), error)
    assert error.fields["log"] == "gone" and not (tmp_path / "log").exists()


def test_the_journal_says_when_it_cannot_be_withdrawn(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    migration = offered(journal)

    def broken(*_: object, **__: object) -> None:
        raise JournalBroken(path=journal.path, reason="disk full")

    monkeypatch.setattr(Migration, "move", broken)
    with pytest.raises(SourceStateUnknown, match="disk full"):
        offer.withdraw(migration)
