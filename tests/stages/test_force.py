# SPDX-License-Identifier: GPL-2.0-or-later
"""What counts as a host that is lost, what a force then does, and what who comes back is told."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrator import clock, healing, holder, layout
from migrator.errors import (
    ConnectionLost,
    ForceRefused,
    HostKeyChanged,
    HostKeyUnknown,
    HostUnreachable,
    Interrupted,
    MigratorError,
    OutOfOrder,
    ProtocolError,
    RemoteMissing,
    SourceStateUnknown,
    SshRefused,
    TwoCopies,
)
from migrator.healing import ASK_AFTER, must_ask
from migrator.journal import Journal, Migration
from migrator.layout import locked
from migrator.service import Service
from migrator.states import Event, Owner, Role, State
from stages import ask_source, cleanup, finish, force, rollback
from tests.stages.test_heal import journal, offered, owned  # noqa: F401 -- a fixture
from tunnel.errors import DocumentedError, NoPath, PeerAbsent, PeerRefuses, PeerSilent, RendezvousUnavailable

# ruff: noqa: F811 -- fixtures


def unreachable(*, silent: bool) -> HostUnreachable:
    error = HostUnreachable(destination="root@hostb", reason="no answer")
    error.silent = silent
    return error


def refused() -> HostUnreachable:
    error = unreachable(silent=False)
    error.answered = True
    return error


SILENT: list[DocumentedError] = [unreachable(silent=True)]
UNKNOWN: list[DocumentedError] = [
    unreachable(silent=False), PeerAbsent(name="b", server="r"), PeerSilent(name="b", reason="nothing"),
]
ALIVE: list[DocumentedError] = [
    refused(), HostKeyChanged(), HostKeyUnknown(), SshRefused(), RemoteMissing(), ProtocolError(),
    ConnectionLost(), NoPath(), PeerRefuses(), RendezvousUnavailable(), MigratorError(reason="?"),
]


@pytest.fixture(autouse=True)
def nothing_real(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """There is no container here; what would be done to it."""
    done: list[str] = []
    monkeypatch.setattr(rollback, "thaw_source", lambda _: done.append("thawed"))
    monkeypatch.setattr(rollback, "where", lambda _: "It runs on here.")
    monkeypatch.setattr(holder, "_interrupted", [])
    monkeypatch.setattr(layout.locked.__wrapped__, "__defaults__", (tmp_path / "lock",))  # type: ignore
    monkeypatch.setattr(holder.of, "__defaults__", (tmp_path / "lock",))
    yield done


def test_only_silence_is_silence() -> None:
    assert all(force.is_silence(error) for error in SILENT)
    assert not any(force.is_silence(error) for error in ALIVE + UNKNOWN)
    assert all(force.is_unknown(error) for error in UNKNOWN)
    assert not any(force.is_unknown(error) for error in ALIVE + SILENT)
    there = unreachable(silent=True)
    there.host = "hostb"  # of a jump of its own
    assert not force.is_silence(there)


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

    with pytest.raises(SourceStateUnknown):
        force.roll_back(migration, migration.id, tell)
    assert nothing_real == []
    assert f"--force {migration.id} --machine-is-off" in " ".join(capfd.readouterr().err.split())
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


@pytest.mark.parametrize("swallowed", [False, True])
def test_ctrl_c_forces_nothing(journal: Journal, nothing_real: list[str], swallowed: bool) -> None:
    migration = offered(journal)
    signal = Interrupted(signal="SIGINT", number=2)

    def tell() -> str:
        holder.interrupted(signal)
        raise unreachable(silent=True) if swallowed else signal

    with pytest.raises(Interrupted):
        force.roll_back(migration, migration.id, tell)
    assert migration.state is State.OFFERED and nothing_real == []


def test_who_asks_in_the_middle_of_it_hears_the_end_already(journal: Journal) -> None:
    migration = offered(journal)
    with Journal(journal.path) as another, contextlib.ExitStack() as stack:
        service = Service(another, stack)

        def state() -> object:
            return ask_source.source_state(service, {"id": migration.id})["state"]

        def tell() -> str:
            assert state() is State.ROLLING_BACK
            raise SshRefused()

        assert state() is State.OFFERED
        with locked("web"), pytest.raises(SourceStateUnknown):
            force.roll_back(migration, migration.id, tell)
        assert state() is State.OFFERED, "it has come to nothing"


# --- the destination asks before it restores ------------------------------------------------------------------


@pytest.mark.parametrize(("here", "age", "asks"), [
    (State.OWNED, 0.0, False), (State.OWNED, ASK_AFTER, True), (State.OWNED, None, True),
    (State.DUMP_RECEIVED, None, True), (State.IMPORTED, None, False), (State.RESTORED, None, False),
])
def test_when_it_must_ask(here: State, age: float | None, asks: bool) -> None:
    assert must_ask(here, age) is asks


@pytest.mark.parametrize("source", sorted(healing.TAKEN_BACK))
@pytest.mark.parametrize("here", [State.DUMP_RECEIVED, State.OWNED])
def test_a_source_that_takes_it_back_is_believed(journal: Journal, monkeypatch: pytest.MonkeyPatch, source: State,
                                                 here: State) -> None:
    """Whatever the clock of this host shows: it was rebooted since it took the token, or never took it."""
    migration = owned(journal, taken={"boot": "an earlier one", "seconds": 1.0})
    migration.state = here
    monkeypatch.setattr("time.time", lambda: 0.0)
    monkeypatch.setattr(ask_source, "ask", lambda *_: source)
    given_up: list[Migration] = []
    monkeypatch.setattr(rollback, "give_up_here", given_up.append)
    ask_source.ask_first(migration)
    assert given_up == [migration]
    assert healing.on_destination(here, source, images=True) == "rollback"


def test_a_token_that_was_just_taken_needs_no_question(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask_source, "ask", lambda *_: pytest.fail("it is asked"))
    ask_source.ask_first(owned(journal, taken=clock.stamp()))


# --- a source that is lost for good ---------------------------------------------------------------------------


def restored(journal: Journal) -> Migration:
    migration = owned(journal)
    migration.move(Event.RESTORE)
    migration.move(Event.RESTORED)
    return migration


@pytest.mark.parametrize("error", SILENT + UNKNOWN, ids=lambda error: type(error).__name__)
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
            cleanup.forget(journal, None)
        else:
            moved_25_times(journal, migration)

    forget()
    assert journal.by_id(migration.id, Role.DESTINATION)
    finish.end_here(migration)  # the source has come back
    for each in journal.all():
        if each.role is Role.SOURCE:
            journal.forget(each)
    forget()
    assert journal.by_id(migration.id, Role.DESTINATION) is None
