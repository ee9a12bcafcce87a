# SPDX-License-Identifier: GPL-2.0-or-later
"""What counts as a host that is lost, what a force then does, and what who comes back is told."""

from __future__ import annotations

import contextlib

import pytest

from migrator.base import boot_clock
from migrator.base.process_id import Process
from migrator.base.result import Result
from migrator.copies import leave, resume_rules
from migrator.copies.leave import BY_HAND, LEAST
from migrator.copies.resume_rules import must_ask
from migrator.errors import Interrupted
from migrator.errors.connection import HostKeyChanged, SshRefused
from migrator.errors.containers import AlreadyRuns, NotKnownThere, OutOfOrder
from migrator.errors.documented import DocumentedError
from migrator.errors.outcomes import SourceStateUnknown
from migrator.errors.ownership import ForceRefused, SourceNeeded, TwoCopies
from migrator.errors.this_host import Busy
from migrator.record import container_lock, next_commands
from migrator.record.journal import Journal, Migration
from migrator.record.migration_paths import locked
from migrator.record.states import Event, Owner, Role, State
from migrator.remote.answering import Service
from migrator.transfer.messages import AskSourceState, SourceState
from stages import cleanup, finish
from stages.steps import ask_source, finish_here, force, settling
from stages.steps.options import EndOptions, NamedContainer
from tests.stages.journals import journal, offered, owned  # noqa: F401 -- a fixture
from tests.stages.lost_hosts import (  # noqa: F401 -- fixtures
    ALIVE,
    NOT_REACHED,
    SILENT,
    UNKNOWN,
    not_known,
    nothing_real,
    now,
    refused,
    restored,
    unreachable,
)

# ruff: noqa: F811 -- fixtures


ROLLBACK = "migrator rollback web"


def test_only_silence_is_silence() -> None:
    assert all(force.is_silence(error) for error in SILENT)
    assert not any(force.is_silence(error) for error in ALIVE + UNKNOWN)
    assert all(force.is_unknown(error) for error in UNKNOWN)
    assert not any(force.is_unknown(error) for error in ALIVE + SILENT)
    for there in (unreachable(silent=True), unreachable(silent=False), not_known(another=True)):
        there.host = "hostb"  # of a jump of its own
        assert not force.is_silence(there) and not force.is_unknown(there)


@pytest.mark.parametrize("error", SILENT, ids=lambda error: type(error).__name__)
def test_a_silent_host_is_given_up(journal: Journal, nothing_real: list[str], error: DocumentedError) -> None:
    migration = offered(journal)

    def tell() -> str:
        raise error

    assert force.roll_back(migration, migration.id, tell).data["forced"]
    assert migration.state is State.ROLLED_BACK and nothing_real == ["thawed"]


@pytest.mark.parametrize("error", UNKNOWN, ids=lambda error: type(error).__name__)
def test_where_it_cannot_be_told_somebody_must_say_that_it_is_off(
    journal: Journal, nothing_real: list[str], error: DocumentedError, capfd: pytest.CaptureFixture[str],
) -> None:
    migration = offered(journal)

    def tell() -> str:
        raise error

    with pytest.raises(SourceStateUnknown) as refused:
        force.roll_back(migration, migration.id, tell)
    assert nothing_real == [] and "it cannot be seen from here whether" in " ".join(capfd.readouterr().err.split())
    assert refused.value.hint == refused.value.to_json()["cure"] == (
        f"Once hostb can be reached again: {ROLLBACK} -- if you have made sure that it is off, and stays off: "
        f"{ROLLBACK} --force {migration.id} --machine-is-off")
    assert force.roll_back(migration, migration.id, tell, off=True).data["forced"]
    assert nothing_real == ["thawed"]


@pytest.mark.parametrize("off", [False, True])
@pytest.mark.parametrize("error", ALIVE, ids=lambda error: type(error).__name__)
def test_who_shows_any_sign_of_life_is_not(journal: Journal, nothing_real: list[str], error: DocumentedError,
                                           off: bool) -> None:
    migration = offered(journal)

    def tell() -> str:
        raise error

    with pytest.raises(SourceStateUnknown):
        force.roll_back(migration, migration.id, tell, off=off)
    assert migration.state is State.OFFERED and migration.owner is Owner.UNKNOWN and nothing_real == []


@pytest.mark.parametrize("silent", [None, False, True])  # what it was taken for on its way, if for anything
def test_ctrl_c_forces_nothing(journal: Journal, nothing_real: list[str], silent: bool | None) -> None:
    migration = offered(journal)
    signal = Interrupted(signal="SIGINT", number=2)

    def tell() -> str:
        container_lock.interrupted(signal)
        raise signal if silent is None else unreachable(silent=silent)

    with pytest.raises(Interrupted):
        force.roll_back(migration, migration.id, tell)
    assert migration.state is State.OFFERED and nothing_real == []


def test_who_asks_in_the_middle_of_it_hears_the_end_already(journal: Journal) -> None:
    migration = offered(journal)
    with Journal(journal.path) as another, contextlib.ExitStack() as stack:
        service = Service(another, stack)

        def state() -> object:
            return ask_source.source_state(service, AskSourceState(id=migration.id)).state

        def tell() -> str:
            assert state() is State.ROLLING_BACK
            raise SshRefused()

        assert state() is State.OFFERED
        with locked("web", lxcpath=migration.lxcpath), pytest.raises(SourceStateUnknown):
            force.roll_back(migration, migration.id, tell)
        assert state() is State.OFFERED, "it has come to nothing"


# --- the destination asks before it restores ------------------------------------------------------------------


@pytest.mark.parametrize(("left", "asks"), [
    (BY_HAND, False), (LEAST, False), (LEAST - 0.1, True), (0.0, True), (None, True),
])
def test_when_it_must_ask(left: float | None, asks: bool) -> None:
    assert must_ask(left) is asks


@pytest.mark.parametrize("source", sorted(resume_rules.TAKEN_BACK))
@pytest.mark.parametrize("here", [State.DUMP_RECEIVED, State.OWNED])
def test_a_source_that_takes_it_back_is_believed(journal: Journal, monkeypatch: pytest.MonkeyPatch, source: State,
                                                 here: State) -> None:
    """Whatever the clock of this host shows: it was rebooted since it took the token, or never took it."""
    migration = owned(journal, leave={"boot": "an earlier one", "until": 1e9, "lasts": 120.0})
    migration.state = here
    monkeypatch.setattr("time.time", lambda: 0.0)
    monkeypatch.setattr(ask_source, "_asked", lambda *_, **__: (source, 0.0))
    assert ask_source.leave_for(ask_source.QUICKLY, migration, 120.0) == 0.0
    assert resume_rules.on_destination(here, source, images=True) == "rollback"


def test_as_long_as_its_word_holds_the_source_is_not_asked(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask_source, "_asked", lambda *_, **__: pytest.fail("it is asked"))
    now = boot_clock.now()
    migration = owned(journal, leave=boot_clock.until(now + BY_HAND, BY_HAND))
    end = ask_source.leave_for(ask_source.QUICKLY, migration, 3600.0, by_hand=True)
    assert end == pytest.approx(now + BY_HAND, abs=1.0), "and not for longer"
    monkeypatch.setattr(ask_source, "_asked", lambda *_, **__: (State.DUMPED, 600.0))
    end = ask_source.leave_for(ask_source.QUICKLY, migration, 300.0)
    assert end == pytest.approx(now + 300.0, abs=1.0), "nobody who types each step by hand waits for that"


@pytest.mark.parametrize("said", [
    SILENT[0], UNKNOWN[0], refused(), SshRefused(), HostKeyChanged(), Busy(name="web", pid=12),
    None, State.PREPARED, State.DUMPING, State.DUMPED,
], ids=lambda said: type(said).__name__ if isinstance(said, DocumentedError) else str(said))
def test_without_its_word_nothing_is_let_run(journal: Journal, monkeypatch: pytest.MonkeyPatch,
                                             said: DocumentedError | State | None) -> None:
    """Not where it cannot be asked, nor where it has forgotten it, or has the token, or does not say for how long."""
    migration = owned(journal)

    def asked(*_: object, **__: object) -> tuple[State | None, float]:
        if isinstance(said, DocumentedError):
            raise said
        return said, 0.0 if said is State.DUMPED else 60.0

    monkeypatch.setattr(ask_source, "_asked", asked)
    with pytest.raises(SourceNeeded) as refused:
        ask_source.leave_for(ask_source.QUICKLY, migration, 120.0)
    assert "resume web   (on hosta)" in refused.value.hint
    assert "migrator restore-dump web --force" in refused.value.hint
    if not isinstance(said, DocumentedError):
        assert resume_rules.on_destination(State.OWNED, None if said is State.DUMPED else said, images=True) == ""


def test_ctrl_c_is_no_answer(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: object, **__: object) -> tuple[State | None, float]:
        raise Interrupted(signal="SIGINT", number=2)

    monkeypatch.setattr(ask_source, "_asked", asked)
    with pytest.raises(Interrupted):
        ask_source.leave_for(ask_source.QUICKLY, owned(journal), 120.0)


def test_the_source_records_its_word_before_it_gives_it(journal: Journal) -> None:
    """Who forces meanwhile waits for it; who forces first has the last word; and who works on it is not overtaken."""
    migration = offered(journal)

    def ask() -> SourceState:
        with Journal(journal.path) as another, contextlib.ExitStack() as stack:
            return ask_source.source_state(Service(another, stack), AskSourceState(id=migration.id, within=90.0))

    assert ask() == SourceState(state=State.OFFERED, owner=Owner.UNKNOWN, leave=90.0)
    migration.refresh()
    assert 80 < leave.outstanding(migration.handover.leave) <= 90
    with locked("web", lxcpath=migration.lxcpath):
        with pytest.raises(Busy):
            ask()
        migration.note("forcing", forcing=Process.current())
        assert ask().state is State.ROLLING_BACK
    migration.move(Event.ROLL_BACK)
    assert ask() == SourceState(state=State.ROLLING_BACK, owner=Owner.SOURCE)


# --- a forced rollback waits until the destination's time is over ---------------------------------------------


def test_it_waits_and_asks_once_more(journal: Journal, nothing_real: list[str], now: list[float]) -> None:
    migration = offered(journal)
    migration.note("leave", leave=leave.given(migration.handover.leave, 60.0))
    asked: list[float] = []

    def tell() -> str:
        asked.append(now[0])
        assert nothing_real == []
        raise SILENT[0]

    began = now[0]
    assert force.roll_back(migration, migration.id, tell).data["forced"]
    assert asked[0] == began and asked[1] >= began + 60.0 and len(asked) == 2
    assert nothing_real == ["thawed"]


def test_what_answers_meanwhile_is_believed(journal: Journal, nothing_real: list[str], now: list[float]) -> None:
    """It was cut off, and not off, and has let it run in its time."""
    migration = offered(journal)
    migration.note("leave", leave=leave.given(migration.handover.leave, 60.0))
    began = now[0]

    def tell() -> str:
        if now[0] > began:
            raise AlreadyRuns(name="web", destination="hostb", next="migrator finish web")
        raise SILENT[0]

    with pytest.raises(AlreadyRuns):
        force.roll_back(migration, migration.id, tell)
    assert migration.state is State.OFFERED and nothing_real == []


def test_ctrl_c_ends_the_wait(journal: Journal, nothing_real: list[str], now: list[float],
                              monkeypatch: pytest.MonkeyPatch) -> None:
    migration = offered(journal)
    migration.note("leave", leave=leave.given(migration.handover.leave, 60.0))

    def tell() -> str:
        raise SILENT[0]

    monkeypatch.setattr("time.sleep", lambda _: container_lock.interrupted(Interrupted(signal="SIGINT", number=2)))
    with pytest.raises(Interrupted):
        force.roll_back(migration, migration.id, tell)
    assert migration.state is State.OFFERED and nothing_real == []


def test_a_machine_that_is_off_lets_nothing_run(journal: Journal, nothing_real: list[str], now: list[float]) -> None:
    migration = offered(journal)
    migration.note("leave", leave=leave.given(migration.handover.leave, 60.0))
    began = now[0]

    def tell() -> str:
        raise SILENT[0]

    assert force.roll_back(migration, migration.id, tell, off=True).data["forced"]
    assert now[0] == began and nothing_real == ["thawed"]


# --- and who has lost his source lets it run with the id ------------------------------------------------------


def test_let_run_without_a_source_that_is_lost(journal: Journal) -> None:
    migration = owned(journal)

    def ask() -> State | None:
        raise SILENT[0]

    for given in ("", "web", "0badc0d"):
        with pytest.raises(ForceRefused, match="not run here by force") as refused:
            force.let_run(migration, given, lambda: pytest.fail("nobody is to be asked"))
        assert refused.value.hint.endswith(f"migrator restore-dump web --force {migration.id}")
    assert force.let_run(migration, migration.id, ask)
    assert force.let_run(migration, migration.id, lambda: None), "it has lost its journal"
    for state in resume_rules.TAKEN_BACK:
        assert not force.let_run(migration, migration.id, lambda: state)  # noqa: B023  # called at once
    for state in resume_rules.LETS_RUN:
        with pytest.raises(OutOfOrder):
            force.let_run(migration, migration.id, lambda: state)  # noqa: B023  # called at once


@pytest.mark.parametrize(("error", "with_a_word"), [
    *((error, True) for error in UNKNOWN), *((error, False) for error in ALIVE),
    (Interrupted(signal="SIGINT", number=2), False),
], ids=lambda case: type(case).__name__)
def test_a_source_that_may_live_is_not_lost(journal: Journal, error: DocumentedError, with_a_word: bool) -> None:
    migration = owned(journal)

    def ask() -> State | None:
        raise error

    with pytest.raises(type(error)) as refused:
        force.let_run(migration, migration.id, ask)
    assert ("--machine-is-off" in refused.value.hint) is with_a_word
    error.instead = ""
    with contextlib.nullcontext() if with_a_word else pytest.raises(type(error)):
        assert force.let_run(migration, migration.id, ask, off=True)


def test_what_stands_fenced_is_not_finished_without_its_source(journal: Journal,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    """A reboot has stopped it, and the source may have been forced to run it meanwhile."""
    migration = restored(journal)
    monkeypatch.setattr(settling, "seems_fenced", lambda _: True)
    with pytest.raises(OutOfOrder) as refused:
        force.finish_alone(migration, migration.id, lambda: pytest.fail("it is asked"))
    assert "migrator resume web" in refused.value.hint


# --- a source that is lost for good ---------------------------------------------------------------------------


@pytest.mark.parametrize("error", SILENT + NOT_REACHED, ids=lambda error: type(error).__name__)
def test_it_ends_here(journal: Journal, error: DocumentedError) -> None:
    migration = restored(journal)

    def ask() -> State | None:
        raise error

    for given in ("", "web", "0badc0d"):
        with pytest.raises(ForceRefused, match="not finished by force") as refused:
            force.finish_alone(migration, given, ask)
        assert refused.value.hint.endswith(f"migrator finish web --force {migration.id}")
    assert force.finish_alone(migration, migration.id, ask).data["forced"]
    found = journal.by_id(migration.id, Role.DESTINATION)
    assert found and found.ended and found.state is State.FINISHED


@pytest.mark.parametrize("another", [True, False])
def test_where_the_source_is_off_another_host_by_its_name_says_nothing(journal: Journal, another: bool,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    migration = restored(journal)

    def ask(*_: object) -> State | None:
        raise not_known(another=another)

    def forced(*, off: bool) -> Result:
        options = EndOptions(NamedContainer("web"), force=migration.id, machine_is_off=off)
        return finish._on_destination(options, migration)

    monkeypatch.setattr(ask_source, "ask", ask)
    with pytest.raises(NotKnownThere) as refused:
        forced(off=False)
    assert (f"migrator finish web --force {migration.id} --machine-is-off" in refused.value.hint) is another
    with contextlib.nullcontext() if another else pytest.raises(NotKnownThere):
        assert forced(off=True).data["forced"]
    assert (migration.state is State.FINISHED) is another


@pytest.mark.parametrize(("answer", "error"), [
    (State.DUMPED, OutOfOrder), (State.FINISHING, OutOfOrder), (State.ROLLED_BACK, TwoCopies),
    (State.ROLLING_BACK, TwoCopies), (SshRefused(), SshRefused), (HostKeyChanged(), HostKeyChanged),
    (Interrupted(signal="SIGINT", number=2), Interrupted),
])
def test_a_source_that_lives_is_believed(journal: Journal, answer: State | DocumentedError,
                                         error: type[DocumentedError]) -> None:
    migration = restored(journal)

    def ask() -> State | None:
        if isinstance(answer, DocumentedError):
            raise answer
        return answer

    with pytest.raises(error):
        force.finish_alone(migration, migration.id, ask)
    assert migration.state is State.RESTORED


@pytest.mark.parametrize(("answer", "stage"), [
    (State.FINISHED, "resume"), (State.FINISHING, "finish@source"), (State.DUMPED, "finish@source"),
])
def test_what_a_source_that_lives_has_left_to_do_is_said(journal: Journal, answer: State, stage: str) -> None:
    migration = restored(journal)
    with pytest.raises(OutOfOrder) as refused:
        force.finish_alone(migration, migration.id, lambda: answer)
    assert refused.value.hint == f"Next: {next_commands.command(stage, migration)}"


def test_the_machine_is_taken_for_off_on_somebodys_word_alone(journal: Journal) -> None:
    migration = restored(journal)

    def ask() -> State | None:
        raise not_known(another=True)

    with pytest.raises(NotKnownThere) as refused:
        force.finish_alone(migration, migration.id, ask)
    assert f"can be reached again: {next_commands.command('finish@source', migration)} -- if you" in refused.value.hint
    assert migration.state is State.RESTORED


def test_what_does_not_run_here_is_not_finished(journal: Journal) -> None:
    migration = owned(journal)
    with pytest.raises(OutOfOrder, match="does not run here"):
        force.finish_alone(migration, migration.id, lambda: pytest.fail("it is asked"))
    assert migration.state is State.OWNED and finish.NAME == "finish"


def moved_25_times(journal: Journal, after: Migration) -> None:
    for number in range(25):
        later = journal.create(id=f"{number:08x}", role=Role.SOURCE, name="web", lxcpath=after.lxcpath,
                               peer="root@hostc", event=Event.SEND, rounds=[])
        later.move(Event.ROLL_BACK)
        later.move(Event.ROLLED_BACK)


@pytest.mark.parametrize("how", ["cleanup --forget", "25 later ones"])
def test_what_ended_without_its_source_is_remembered_until_that_has_ended_its_copy(journal: Journal, how: str) -> None:
    """It may come back, with its copy frozen or gone, and ask: who then has forgotten lets it run a second one."""
    migration = restored(journal)

    def ask() -> State | None:
        raise SILENT[0]

    force.finish_alone(migration, migration.id, ask)
    succeeded = journal.create(id="feedface", role=Role.DESTINATION, name="web", lxcpath=migration.lxcpath,
                               peer="hosta", event=Event.RECEIVE, rounds=[])  # which alone keeps what succeeded before
    with journal.transaction() as db:
        db.execute("UPDATE migrations SET state = 'finished' WHERE id = ?", (succeeded.id,))

    def forget() -> None:
        if how == "cleanup --forget":
            cleanup.forget(journal)
        else:
            moved_25_times(journal, migration)

    forget()
    assert journal.by_id(migration.id, Role.DESTINATION)
    finish_here.end_here(migration)  # the source has come back
    for each in journal.all():
        if each.role is Role.SOURCE:
            journal.forget(each)
    forget()
    assert journal.by_id(migration.id, Role.DESTINATION) is None
