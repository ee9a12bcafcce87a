# SPDX-License-Identifier: GPL-2.0-or-later
"""What a force records and says, and that it is none where nobody else's word is needed."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import pytest

from migrator.base import log
from migrator.base.process_id import Process
from migrator.copies import leave
from migrator.errors import Interrupted
from migrator.errors.containers import AlreadyRuns, BackThere, NotKnownThere, OutOfOrder
from migrator.errors.documented import DocumentedError
from migrator.errors.ownership import ForceRefused, TwoCopies
from migrator.record import container_lock
from migrator.record.journal import Journal
from migrator.record.migration_paths import locked
from migrator.record.states import Event, Owner, Role, State
from stages.steps import force, settling
from tests.stages.journals import dumping, journal, offered, owned  # noqa: F401 -- a fixture
from tests.stages.lost_hosts import SILENT, nothing_real, now, restored  # noqa: F401 -- fixtures


def test_before_the_offer_it_is_a_rollback_like_any_other(journal: Journal, nothing_real: list[str]) -> None:
    """The destination is told, and no id is asked for."""
    migration = dumping(journal)
    asked: list[str] = []

    def tell() -> str:
        asked.append("asked")
        return ""

    done = force.roll_back(migration, "", tell)
    assert asked and done.data["forced"] is False and done.data["destination_told"] is True
    assert nothing_real == ["thawed"] and migration.state is State.ROLLED_BACK and not migration.owes


@pytest.mark.parametrize(("given", "what"), [
    ("", "the id of its migration is missing"), ("feedface", "feedface is not the id of its migration"),
])
@pytest.mark.parametrize(("taken", "known"), [
    (False, "hostb was offered the token and has not answered: it may have taken it, and may run web."),
    (True, "hostb has taken the token: it runs web, or may run it at any time."),
])
def test_what_it_would_risk_is_said(journal: Journal, given: str, what: str, taken: bool, known: str) -> None:
    migration = offered(journal)
    if taken:
        migration.move(Event.TAKEN)
    with pytest.raises(ForceRefused) as refused:
        force.roll_back(migration, given, lambda: pytest.fail("nobody is to be asked"))
    assert refused.value.fields["reason"] == what and str(refused.value.fields["risk"]).startswith(known)
    assert migration.ending.forcing is None and migration.owner is not Owner.SOURCE


def test_when_it_was_forced_is_on_record(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1234.5)
    migration = offered(journal)
    migration.note("names", other_name="shop")

    def tell() -> str:
        raise SILENT[0]

    done = force.roll_back(migration, migration.id, tell)
    found = journal.by_id(migration.id, Role.SOURCE)
    assert found and found.ending.forced_at == 1234.5 and found.owes
    steps = [each.step for each in found.events()]
    assert steps[-4:] == ["forcing", "roll-back", "rolled-back", "forced"]
    assert "hostb was not asked" in done.text and done.text.endswith("migrator resume shop -P /pool")


FORGOTTEN = NotKnownThere(destination="hostb", id="0badc0de", name="web", peer="root@hostb")
FORGOTTEN.forgotten = True


@pytest.mark.parametrize(("error", "warned"), [(SILENT[0], False), (FORGOTTEN, True)])
def test_one_that_knows_nothing_more_is_told_of(journal: Journal, capfd: pytest.CaptureFixture[str],
                                                error: DocumentedError, warned: bool) -> None:
    migration = offered(journal)

    def tell() -> str:
        raise error

    assert force.roll_back(migration, migration.id, tell).data["forced"]
    assert ("does not know migration" in " ".join(capfd.readouterr().err.split())) is warned


def test_late_it_may_hear_that_there_are_two(journal: Journal) -> None:
    migration = offered(journal)
    migration.note("names", other_name="shop")
    migration.move(Event.ROLL_BACK, forced=True, abandoned=False)
    migration.move(Event.ROLLED_BACK)
    error = AlreadyRuns(name="shop", destination="hostb", next="x")

    def tell() -> str:
        raise error

    with pytest.raises(TwoCopies) as two:
        force.tell_late(migration, tell)
    assert two.value.__cause__ is error and migration.owes
    error = BackThere(name="shop", destination="hostb", there="shop", lxcpath="/pool", next="x")
    with pytest.raises(BackThere):  # it had given way: `resume` there, which that advises, does nothing more about it
        force.tell_late(migration, tell)
    assert migration.owes
    assert (two.value.fields["there"], two.value.fields["destination"], two.value.fields["lxcpath"]) == (
        "shop", "hostb", "/pool")
    force.tell_late(migration, lambda: "")
    found = journal.by_id(migration.id, Role.SOURCE)
    assert found and found.ending.abandoned is True and not found.owes and found.events()[-1].step == "abandoned"


def test_ctrl_c_is_told_as_one(journal: Journal, nothing_real: list[str]) -> None:
    """And not as a destination of which nothing is known."""
    migration = offered(journal)

    def tell() -> str:
        raise Interrupted(signal="SIGINT", number=2)

    with pytest.raises(Interrupted):
        force.roll_back(migration, migration.id, tell)
    assert migration.state is State.OFFERED and nothing_real == []


def test_ctrl_c_while_a_host_is_given_up_forces_nothing(journal: Journal, nothing_real: list[str],
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes while that is said, and is lost on its way."""
    migration = offered(journal)

    def tell() -> str:
        raise FORGOTTEN

    monkeypatch.setattr(log, "warning",
                        lambda *_, **__: container_lock.interrupted(Interrupted(signal="SIGINT", number=2)))
    with pytest.raises(Interrupted):
        force.roll_back(migration, migration.id, tell, off=True)
    assert migration.state is State.OFFERED and nothing_real == []


def test_ctrl_c_ends_nothing_by_force(journal: Journal) -> None:
    """Though the question for the source's state has swallowed it."""
    migration = restored(journal)

    def ask() -> State | None:
        container_lock.interrupted(Interrupted(signal="SIGINT", number=2))
        raise SILENT[0]

    with pytest.raises(Interrupted):
        force.finish_alone(migration, migration.id, ask)
    assert migration.state is State.RESTORED


@pytest.mark.parametrize(("given", "what"), [
    ("", "the id of its migration is missing"), ("feedface", "feedface is not the id of its migration"),
])
def test_what_would_be_left_behind_is_said(journal: Journal, given: str, what: str) -> None:
    migration = restored(journal)
    with pytest.raises(ForceRefused) as refused:
        force.finish_alone(migration, given, lambda: pytest.fail("nobody is to be asked"))
    assert refused.value.fields["reason"] == what
    assert str(refused.value.fields["risk"]).startswith("As long as hosta is up, it holds a frozen copy of web")


# --- waiting for what the destination was told ----------------------------------------------------------------


def test_where_it_was_told_nothing_nobody_waits_or_asks_again(journal: Journal, now: list[float]) -> None:
    migration = offered(journal)
    asked: list[float] = []

    def tell() -> str:
        asked.append(now[0])
        raise SILENT[0]

    assert force.roll_back(migration, migration.id, tell).data["forced"] and len(asked) == 1


@pytest.mark.parametrize("seconds", [60.0, 0.1])
def test_it_is_waited_for_to_the_end_and_no_longer(journal: Journal, monkeypatch: pytest.MonkeyPatch, now: list[float],
                                                   seconds: float) -> None:
    """In pieces, between which a Ctrl-C is heard; a clock that is a little slower has its time too."""
    slept: list[float] = []

    def sleep(piece: float) -> None:
        slept.append(piece)
        now[0] += piece

    monkeypatch.setattr("time.sleep", sleep)
    migration = offered(journal)
    migration.note("leave", leave=leave.given(None, seconds))
    assert force.wait_out(migration, "hostb") is True
    assert now[0] == pytest.approx(1000.0 + seconds * (1 + leave.SLACK)) and 0 < max(slept) <= force.POLL
    assert force.wait_out(migration, "hostb") is False


# --- letting it run without its source ------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "what"), [
    ("", "the id of its migration is missing"), ("feedface", "feedface is not the id of its migration"),
])
def test_what_letting_it_run_would_risk_is_said(journal: Journal, given: str, what: str) -> None:
    migration = owned(journal)
    with pytest.raises(ForceRefused) as refused:
        force.let_run(migration, given, lambda: pytest.fail("nobody is to be asked"))
    assert refused.value.fields["reason"] == what and migration.ending.forced_at is None
    assert str(refused.value.fields["risk"]).startswith("hosta may have been forced to run web again")


def test_when_it_was_let_run_by_force_is_on_record(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1234.5)
    migration = owned(journal)

    def ask() -> State | None:
        raise SILENT[0]

    assert force.let_run(migration, migration.id, ask) is True
    found = journal.by_id(migration.id, Role.DESTINATION)
    assert found and found.ending.forced_at == 1234.5 and found.events()[-1].step == "forced"


@pytest.mark.parametrize("swallowed", [False, True])
def test_ctrl_c_lets_nothing_run(journal: Journal, swallowed: bool) -> None:
    migration = owned(journal)
    signal = Interrupted(signal="SIGINT", number=2)

    def ask() -> State | None:
        container_lock.interrupted(signal)
        raise SILENT[0] if swallowed else signal

    with pytest.raises(Interrupted):
        force.let_run(migration, migration.id, ask, off=True)
    assert migration.ending.forced_at is None


@pytest.mark.parametrize("stopped", [False, True])
def test_what_may_be_let_run(journal: Journal, monkeypatch: pytest.MonkeyPatch, stopped: bool) -> None:
    """Not what runs already; but what has run here, and was stopped by a reboot or by itself."""
    migration = restored(journal)
    monkeypatch.setattr(settling, "stands_stopped", lambda of: stopped and of is migration)
    if stopped:
        assert force.let_run(migration, migration.id, lambda: None) is True
        return
    with pytest.raises(OutOfOrder, match="web is restored here") as refused:
        force.let_run(migration, migration.id, lambda: pytest.fail("nobody is to be asked"))
    assert "restore-dump --force" in str(refused.value)


# --- who forces it at this moment -----------------------------------------------------------------------------


def test_it_is_under_way_while_that_process_has_the_lock(journal: Journal) -> None:
    migration = offered(journal)
    assert not force.is_under_way(migration)
    with locked("web", lxcpath=migration.lxcpath):
        assert not force.is_under_way(migration), "it does something else"
        pid, started = Process.current()
        for process in ([pid + 1, started], [pid, started + 1]):
            migration.note("forcing", forcing=process)
            assert not force.is_under_way(migration)
        migration.note("forcing", forcing=[pid, started])
        assert force.is_under_way(migration)
        migration.move(Event.TAKEN)
        assert force.is_under_way(migration)
        migration.move(Event.ROLL_BACK, forced=True)
        assert not force.is_under_way(migration), "it is decided"


def test_it_is_not_when_that_process_has_ended(journal: Journal) -> None:
    migration = offered(journal)
    migration.note("forcing", forcing=Process.current())
    assert not force.is_under_way(migration)
