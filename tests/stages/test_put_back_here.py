# SPDX-License-Identifier: GPL-2.0-or-later
"""The source's root file system was put back from a backup, with its journal; the LXC disk, with the fence, was not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from migrator.base import boot_clock
from migrator.config import container_config
from migrator.copies import (
    after_crash,
    autostart,
    leave,
    no_memory,
    older_journal,
    second_start,
    standing,
    written_since,
)
from migrator.errors.connection import HostUnreachable
from migrator.errors.containers import AlreadyRuns, OutOfOrder
from migrator.errors.outcomes import SourceStateUnknown
from migrator.errors.ownership import ForceRefused
from migrator.host import btrfs, lxc
from migrator.host.btrfs import Subvolume
from migrator.record import image_folders
from migrator.record.journal import Journal, Migration
from migrator.record.migration_paths import locked
from migrator.record.states import Event, Owner, Role, State
from stages import create_dump, finish, migrate, resume
from stages.steps import drive, give_back, prologue, resume_source, roll_back
from stages.steps.options import EndOptions, MoveRequest, NamedContainer
from tests.migrator.wire import by_op

ID, UUID = "0badc0de", "11111111-2222-3333-4444-555555555555"
PAST = {State.PREPARING: 0, State.PREPARED: 1, State.DUMPING: 2, State.OFFERED: 3, State.DUMPED: 4}
EVENTS = (Event.SENT, Event.FREEZE, Event.OFFER, Event.TAKEN)
STANDS_STILL = {"init": [4242, 1], "boot": "an earlier one", "cgroup": "/nowhere", "pid": 4242, "ports": [],
                "rootfs_uuid": UUID}


class Container:
    """As LXC knows it: stopped."""

    state, init_pid = "STOPPED", -1

    def __init__(self, name: str, lxcpath: Path, **_: object) -> None:
        self.name, self.lxcpath, self.folder = name, lxcpath, lxcpath / name
        self.config_file, self.rootfs = self.folder / "config", self.folder / "rootfs"


class There:
    """The destination, by its own journal."""

    peer_host = "hostb"

    def __init__(self, state: State | None) -> None:
        self.state = state
        self.asked: list[str] = []

    @by_op
    def call_within(self, _: float, op: str, **__: Any) -> dict[str, Any]:
        self.asked.append(op)
        if op == "abandon":
            raise AlreadyRuns(name="web", destination="hostb", next="migrator finish web")
        return {"state": self.state, "ticket": "t"}

    call = call_within


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was started from its disk."""
    done: list[str] = []
    monkeypatch.setattr(image_folders, "RUNTIME", tmp_path / "run")
    monkeypatch.setattr(lxc, "Container", Container)
    monkeypatch.setattr(lxc, "told_state", lambda container: container.state)
    monkeypatch.setattr(second_start, "on_disk", lambda *_, **__: None)
    monkeypatch.setattr(btrfs, "is_subvolume", Path.is_dir)
    monkeypatch.setattr(btrfs, "info", lambda path: Subvolume(path, UUID, "", read_only=True, generation=1,
                                                              parent_uuid=""))
    monkeypatch.setattr(written_since, "changed", lambda _: 0)
    monkeypatch.setattr(autostart, "under_way", lambda: None)
    monkeypatch.setattr(no_memory, "start", lambda container, *_, **__: done.append(container.name))
    monkeypatch.setattr("os.geteuid", lambda: 0)
    for module in (prologue, resume, migrate):
        monkeypatch.setattr(module, "DEFAULT_PATH", tmp_path / "journal.db")
    monkeypatch.setattr(prologue, "locked", lambda name, **fields: locked(name, tmp_path / "run" / "lock", **fields))
    monkeypatch.setattr(prologue, "locked_for", lambda *_: contextlib.nullcontext())
    return done


@pytest.fixture
def older(tmp_path: Path, started: list[str]) -> Iterator[Callable[..., Migration]]:
    """A journal as it was in that state, beside a fence as it was written in another."""
    with Journal(tmp_path / "journal.db") as journal:

        def make(state: State, fenced_in: State, **detail: Any) -> Migration:
            migration = journal.create(
                id=ID, role=Role.SOURCE, name="web", lxcpath=tmp_path, peer="root@hostb", event=Event.SEND,
                destination_host="hostb", rounds=[{"uuid": UUID, "bytes": 1}], destination_lxcpath="/pool",
                ticket="t", source_lxcpath=str(tmp_path), other_name="web", **detail)
            for event in EVENTS[:PAST[state]]:
                migration.move(event, **(STANDS_STILL if event is Event.FREEZE else {}))
            (tmp_path / "web" / "rootfs").mkdir(parents=True)
            as_it_was = SimpleNamespace(
                state=fenced_in, name="web", id=ID, peer="root@hostb", role=Role.SOURCE, other_name="web",
                begun=migration.begun, copy=msgspec.structs.replace(migration.copy, rootfs_uuid=UUID))
            container_config.fence(tmp_path / "web", "lxc.uts.name = web\n", ID,
                                   standing.message(as_it_was))  # type: ignore[arg-type]
            return migration

        yield make


def fence(migration: Migration) -> str:
    return container_config.fence_of((migration.lxcpath / "web" / "config").read_text())


def recorded(migration: Migration) -> Migration:
    found = migration.journal.by_id(ID, Role.SOURCE)
    assert found
    return found


def named(migration: Migration) -> NamedContainer:
    return NamedContainer("web", str(migration.lxcpath))


def silent(*_: object) -> Any:
    error = HostUnreachable(destination="root@hostb", reason="No route to host")
    error.silent = True
    raise error


def reaches(there: There) -> Callable[..., Any]:
    return lambda *_: contextlib.nullcontext(there)


def resumed(migration: Migration, *, at_boot: bool) -> Any:
    """By migrator-resume.service, or as it is typed."""
    options = resume.ResumeOptions(None if at_boot else named(migration), at_boot=at_boot)
    return resume.one(options, "web", migration.lxcpath, at_boot=at_boot)


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("how", ["at boot", "resume", "migrate", "create-dump", "rollback", "rollback --force"])
@pytest.mark.parametrize("state", list(PAST))
def test_what_runs_there_by_its_fence_is_not_started_here(
        older: Callable[..., Migration], started: list[str], monkeypatch: pytest.MonkeyPatch, state: State, how: str,
        memory: bool) -> None:
    """Whatever the journal has: from `finishing` on nothing leads back. Whether or not its destination answers."""
    migration = older(state, State.FINISHED, memory=memory)
    for module in (give_back, create_dump, resume_source, finish):
        if hasattr(module, "connected"):
            monkeypatch.setattr(module, "connected", silent)
    monkeypatch.setattr(drive.Drive, "run", lambda self: pytest.fail(str(self.move.started.state))
                        if self.move.started.state is not State.FINISHING else "it asks the destination, and finishes")
    if how == "migrate":
        options = migrate.MigrateOptions(MoveRequest(named(migration), "root@hostb"))
        assert "finishes" in str(migrate.run(options))
    elif how in ("at boot", "resume"):
        assert "finishes" in str(resumed(migration, at_boot=how == "at boot"))
    elif how == "create-dump":
        with pytest.raises(HostUnreachable):
            create_dump.run(create_dump.CreateDumpOptions(MoveRequest(named(migration), "hostb")))
    else:
        with pytest.raises(AlreadyRuns, match="hostb") as error:
            roll_back.run(EndOptions(named(migration), force=ID if "force" in how else None))
        assert "migrator finish web" in error.value.hint
    assert not started and fence(migration) == ID and recorded(migration).state is State.FINISHING


@pytest.mark.parametrize("state", [State.PREPARING, State.PREPARED])
def test_silence_counts_where_it_may_run_there(older: Callable[..., Migration], started: list[str],
                                               monkeypatch: pytest.MonkeyPatch, state: State) -> None:
    """The fence that stands is written when it is dumped, and does not say what came after that."""
    migration = older(state, State.DUMPED)
    monkeypatch.setattr(give_back, "connected", silent)
    with pytest.raises(SourceStateUnknown):
        roll_back.run(EndOptions(named(migration)))
    with pytest.raises(ForceRefused):
        roll_back.run(EndOptions(named(migration), force=""))
    assert fence(migration) == ID and not started
    found = recorded(migration)
    assert found.state is State.OFFERED and found.owner is Owner.UNKNOWN
    assert found.handover.leave  # what the source had given its word for is waited for by force too


@pytest.mark.parametrize("there", [State.RESTORED, State.FINISHED])
@pytest.mark.parametrize(("state", "fenced_in"), [
    *((state, State.FINISHED) for state in PAST), *((state, State.DUMPED) for state in PAST)])
def test_finish_ends_it(older: Callable[..., Migration], started: list[str], monkeypatch: pytest.MonkeyPatch,
                        state: State, fenced_in: State, there: State) -> None:
    """The destination confirms that it runs there. What the fence said of its disk it says still."""
    migration, other = older(state, fenced_in), There(there)
    monkeypatch.setattr(finish, "connected", reaches(other))
    monkeypatch.setattr(give_back, "connected", reaches(other))
    assert finish.run(EndOptions(named(migration))).data["already"] is False
    assert other.asked[-2:] == ["running", "finish"]
    assert recorded(migration).state is State.FINISHED and fence(migration) == ID and not started
    assert container_config.is_superseded(migration.lxcpath / "web")
    told = fenced_in is State.FINISHED or PAST[state] > 1
    assert container_config.disk_of(migration.lxcpath / "web") == (UUID if told else "")


@pytest.mark.parametrize(("there", "ticket"), [
    (State.IMPORTED, "t"), (State.DUMP_RECEIVED, "t"), (State.ABANDONED, "t"), (None, "t"), (State.RESTORED, "other"),
    (State.RESTORED, "")])
def test_nothing_is_made_up_without_its_word(older: Callable[..., Migration], started: list[str],
                                             monkeypatch: pytest.MonkeyPatch, there: State | None, ticket: str) -> None:
    migration = older(State.DUMPING, State.DUMPED)
    migration.note("ticket", ticket=ticket)
    monkeypatch.setattr(finish, "connected", reaches(There(there)))
    with pytest.raises(OutOfOrder):
        finish.run(EndOptions(named(migration)))
    assert recorded(migration).state is State.DUMPING and fence(migration) == ID and not started


def test_one_that_has_forgotten_it_takes_the_id(older: Callable[..., Migration], started: list[str],
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    migration = older(State.PREPARED, State.FINISHED)
    monkeypatch.setattr(finish, "connected", reaches(There(None)))
    with pytest.raises(OutOfOrder, match="does not know"):
        finish.run(EndOptions(named(migration)))
    finish.run(EndOptions(named(migration), force=ID))
    assert recorded(migration).state is State.FINISHED and not started


def test_what_is_killed_while_it_is_recorded_goes_on(older: Callable[..., Migration], started: list[str],
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """In `dumping` nobody else would have had a word."""
    migration = older(State.PREPARED, State.DUMPED)
    write = Migration.move

    def killed(self: Migration, event: Event, **detail: Any) -> None:
        if event is Event.OFFER:
            raise KeyboardInterrupt
        write(self, event, **detail)

    monkeypatch.setattr(Migration, "move", killed)
    with pytest.raises(KeyboardInterrupt):
        older_journal.bring_up(migration)
    monkeypatch.setattr(Migration, "move", write)
    assert recorded(migration).state is State.DUMPING
    monkeypatch.setattr(give_back, "connected", silent)
    with pytest.raises(SourceStateUnknown):
        roll_back.run(EndOptions(named(migration)))
    found = recorded(migration)
    assert found.state is State.OFFERED and fence(migration) == ID and not started
    found.move(Event.REFUSED)
    assert older_journal.reached(found) is None  # from here on it is its own


def test_what_has_come_as_far_as_its_fence_is_no_older_one(older: Callable[..., Migration]) -> None:
    migration = older(State.DUMPED, State.FINISHED)
    for event in (Event.FINISH, Event.FINISHED):
        migration.move(event)
        older_journal.bring_up(migration)
        assert older_journal.reached(migration) is None and older_journal.note(migration) == ""


@pytest.mark.parametrize(("recorded", "told", "known"), [
    ("of the record", "of the fence", "of the record"), ("", "of the fence", "of the fence"), ("", "", ""),
])
def test_the_fence_tells_the_disk_where_the_journal_does_not(
        older: Callable[..., Migration], monkeypatch: pytest.MonkeyPatch, recorded: str, told: str, known: str) -> None:
    migration = older(State.PREPARED, State.FINISHED)
    migration.note("disk", rootfs_uuid=recorded)
    monkeypatch.setattr(container_config, "disk_of", lambda _: told)
    older_journal.bring_up(migration)
    assert migration.state is State.FINISHING and migration.copy.rootfs_uuid == known


def test_only_with_the_offer_a_word_was_given(older: Callable[..., Migration],
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    migration = older(State.PREPARED, State.FINISHED)
    moved: dict[Event, dict[str, Any]] = {}
    write = Migration.move

    def move(self: Migration, event: Event, **detail: Any) -> None:
        moved[event] = detail
        write(self, event, **detail)

    monkeypatch.setattr(Migration, "move", move)
    monkeypatch.setattr(leave, "given", lambda *_: boot_clock.until(0.0, 1.0))
    older_journal.bring_up(migration)
    assert len(moved) > 2 and [event for event, detail in moved.items() if "leave" in detail] == [Event.OFFER]


def test_an_earlier_word_that_is_longer_stays_in_force(older: Callable[..., Migration]) -> None:
    """The destination may still go by it."""
    migration = older(State.PREPARED, State.FINISHED)
    migration.note("leave", leave=leave.given(None, 10 * leave.BY_HAND))
    older_journal.bring_up(migration)
    assert leave.outstanding(migration.handover.leave) > 9 * leave.BY_HAND


def test_status_says_so(older: Callable[..., Migration]) -> None:
    migration = older(State.DUMPING, State.FINISHED)
    assert "older one" in after_crash.note(migration) and "runs there" in after_crash.note(migration)
    assert after_crash.next_command(migration) == "migrator finish web"
    assert recorded(migration).state is State.DUMPING  # nothing is recorded by who looks


# --- what is no older journal ---


@pytest.mark.parametrize("state", [State.DUMPING, State.OFFERED, State.DUMPED])
def test_after_a_crash_the_fence_of_that_dump_stands(older: Callable[..., Migration], state: State) -> None:
    migration = older(state, State.DUMPING)
    older_journal.bring_up(migration)
    assert migration.state is state and "older" not in after_crash.note(migration)


@pytest.mark.parametrize("how", ["rollback", "at boot"])
def test_what_was_killed_in_dumping_is_given_back(older: Callable[..., Migration], started: list[str],
                                                  monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    migration = older(State.DUMPING, State.DUMPING)
    monkeypatch.setattr(give_back, "connected", silent)
    if how == "rollback":
        roll_back.run(EndOptions(named(migration)))
    else:
        resumed(migration, at_boot=True)
    assert started == ["web"] and fence(migration) == ""


def test_what_was_renamed_while_it_stood_still_has_its_fence(older: Callable[..., Migration]) -> None:
    """That it was thawed was recorded when its configuration was not there."""
    migration = older(State.PREPARED, State.DUMPING, gone=True)
    older_journal.bring_up(migration)
    assert migration.state is State.PREPARED


@pytest.mark.parametrize("since", ["taken away", "another one's", "removed"])
def test_whose_fence_it_is_the_configuration_says(older: Callable[..., Migration], since: str) -> None:
    """Somebody uses the copy, as its destination is lost; or it has come back, and its hook has stayed."""
    migration = older(State.DUMPING, State.FINISHED)
    config = migration.lxcpath / "web" / "config"
    text = container_config.unfenced(config.read_text())
    if since == "removed":
        config.unlink()
    else:
        hook = config.with_name(container_config.FENCE_HOOK)
        config.write_text(text if since == "taken away" else container_config.fenced(text, hook, "feedface"))
    older_journal.bring_up(migration)
    assert migration.state is State.DUMPING


@pytest.mark.parametrize("name", ["config", container_config.FENCE_HOOK])
def test_what_cannot_be_read_keeps_nothing_frozen(older: Callable[..., Migration], name: str) -> None:
    migration = older(State.DUMPING, State.DUMPING)
    path = migration.lxcpath / "web" / name
    path.unlink()
    path.symlink_to(path)
    older_journal.bring_up(migration)
    assert migration.state is State.DUMPING


def test_the_configuration_of_what_is_frozen_is_not_read(older: Callable[..., Migration],
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """It may lie where nothing answers, while the container stands still."""
    migration = older(State.DUMPING, State.DUMPING)
    monkeypatch.setattr(container_config, "text_of", lambda path: pytest.fail(str(path)))
    assert older_journal.reached(migration) is None
