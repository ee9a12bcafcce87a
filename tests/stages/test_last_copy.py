# SPDX-License-Identifier: GPL-2.0-or-later
"""A dump that came to no end, of a container that was removed meanwhile: its newest snapshot may be the last copy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from migrator.copies import bases, remains
from migrator.errors.containers import DiskAway, OutOfOrder
from migrator.errors.memory import DowntimeExceeded
from migrator.errors.outcomes import SourceRunsAgain, SourceStartedAgain
from migrator.errors.this_host import JournalBroken
from migrator.host import lxc
from migrator.record.journal import Journal, Migration
from migrator.record.migration_paths import Layout
from migrator.record.states import Event, State
from stages.steps import ask_state, drive_back, examine, freeze_and_offer, give_back, offer, send_disk, thaw_again
from stages.steps.drive_move import Move
from stages.steps.options import MoveOptions, MoveRequest, NamedContainer, StandstillOptions
from tests.migrator.layouts import layout_of
from tests.stages.downtimes import TOO_LATE, There
from tests.stages.gone import ANOTHER, DUMPED, ID, ITS_OWN, WAYS, begun, host, put, started, subvolume
from tests.stages.journals import journal
from tests.stages.snapshots import fence

__all__ = ["host", "journal", "started"]


@WAYS
@pytest.mark.parametrize("name_taken", [False, True])
def test_what_a_killed_dump_has_left_stays_for_rollback(journal: Journal, started: list[str], way: dict[str, Any],
                                                        name_taken: bool,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last snapshot, which is the newest, as where nobody has healed it before; but not its images, in memory."""
    dropped: list[str] = []
    monkeypatch.setattr(Layout, "drop_images", lambda self: dropped.append(self.id))
    migration = begun(journal, *DUMPED[:2], **way, rounds=[{}])
    if name_taken:
        put(migration, ANOTHER)
    freeze_and_offer.heal(migration)
    assert started == [] and migration.state is State.PREPARED and dropped == [ID]
    assert [path.name for path in layout_of(migration).own_snapshots()] == [f"{ID}.1", f"{ID}.2"]
    give_back.roll_back(migration, lambda: "")
    assert started == [] and str(migration.state) == "rolled-back"
    assert [path.name for path in layout_of(migration).own_snapshots()] == [f"{ID}.2"]


@WAYS
def test_of_one_that_is_there_nothing_of_that_stays(journal: Journal, started: list[str], way: dict[str, Any]) -> None:
    migration = begun(journal, *DUMPED[:2], **way, rounds=[{}])
    put(migration, ITS_OWN)
    freeze_and_offer.heal(migration)
    assert started == [""] and [path.name for path in layout_of(migration).own_snapshots()] == [f"{ID}.1"]
    give_back.roll_back(migration, lambda: "")
    assert layout_of(migration).own_snapshots() == []


def test_destroyed_while_a_dump_of_it_was_sent(journal: Journal, started: list[str]) -> None:
    """It was stopped for that, and the destination cannot be reached any more."""
    migration = begun(journal, *DUMPED[:2], memory=False, stopping=True, rounds=[{}])
    with pytest.raises(DowntimeExceeded):
        offer.give_up(migration, There(), TOO_LATE)  # type: ignore[arg-type]
    assert [path.name for path in layout_of(migration).own_snapshots()] == [f"{ID}.1", f"{ID}.2"]
    give_back.roll_back(migration, lambda: "")
    assert [path.name for path in layout_of(migration).own_snapshots()] == [f"{ID}.2"]


def test_another_one_of_that_name_is_not_gone_on_with(journal: Journal, started: list[str],
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """By any of the stages: each would remove the last copy, as what a round has left."""
    migration = begun(journal, *DUMPED[:2], memory=False, stopping=True, rounds=[{}])
    put(migration, ANOTHER)
    freeze_and_offer.heal(migration)
    container = lxc.Container("web", migration.lxcpath)
    monkeypatch.setattr(ask_state, "state", lambda *_: State.IMPORTED)
    monkeypatch.setattr(examine, "before_stage", lambda *_, **__: pytest.fail("it goes on"))
    request = MoveRequest(NamedContainer("web"), "root@hostb")
    with pytest.raises(OutOfOrder, match="is another one") as refused:
        send_disk.carry_out(request, journal, migration, container, There(), 0)  # type: ignore[arg-type]
    assert "migrator rollback web" in refused.value.hint
    with pytest.raises(OutOfOrder, match="is another one"):
        freeze_and_offer.carry_out(request, StandstillOptions(), migration, container, There())  # type: ignore[arg-type]
    assert [path.name for path in layout_of(migration).own_snapshots()] == [f"{ID}.1", f"{ID}.2"]


def test_no_rollback_forgets_it_while_its_disk_is_away(journal: Journal, started: list[str]) -> None:
    migration = begun(journal, *DUMPED[:2], memory=False, stopping=True, rounds=[{}])
    freeze_and_offer.heal(migration)
    folder = layout_of(migration).folder
    folder.rename(folder.with_name("unmounted"))
    with pytest.raises(DiskAway) as away:
        give_back.roll_back(migration, lambda: pytest.fail("nobody is told"))
    assert away.value.hint.endswith(f"mkdir -p {folder}") and migration.state is State.PREPARED
    folder.with_name("unmounted").rename(folder)
    give_back.roll_back(migration, lambda: "")
    assert migration.copy.last_copy == [f"{ID}.2"]


def away_while_it_is_told(migration: Migration) -> Path:
    """The other host is asked, and meanwhile the disk is unmounted; returns its place."""
    folder = layout_of(migration).folder

    def unmounted() -> str:
        folder.rename(folder.with_name("unmounted"))
        return ""

    with pytest.raises(DiskAway):
        give_back.roll_back(migration, unmounted)
    return folder


def test_nor_one_that_it_is_away_from_while_the_other_host_is_asked(journal: Journal, started: list[str]) -> None:
    migration = begun(journal, *DUMPED[:2], memory=False, stopping=True, rounds=[{}])
    freeze_and_offer.heal(migration)
    folder = away_while_it_is_told(migration)
    assert str(migration.state) == "rolling-back" and migration.copy.last_copy == []
    folder.with_name("unmounted").rename(folder)
    give_back.roll_back(migration, lambda: "")
    assert migration.copy.last_copy == [f"{ID}.2"]


# --- frozen with its monitor killed, so that LXC said STOPPED, and destroyed so: its tasks live, and are thawed ---

def another_disk(migration: Migration) -> None:
    fence(migration)
    subvolume(layout_of(migration).rootfs, ANOTHER)


IN_ITS_PLACE: dict[str, Callable[[Migration], object]] = {
    "nothing": lambda _: None, "another one": lambda of: put(of, ANOTHER), "its configuration": put,
    "its fence, and another disk": another_disk,
}


@pytest.fixture
def lives(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What stands still; returns the state at each thaw."""
    found: list[str] = []

    def thaw(migration: Migration) -> bool:
        found.append(str(migration.state))
        return thaw_again.may_be_frozen(migration)

    monkeypatch.setattr(thaw_again, "thaw_source", thaw)
    monkeypatch.setattr(remains, "first_is_here", lambda _: True)
    return found


def left_of(migration: Migration) -> list[str]:
    return [path.name for path in layout_of(migration).own_snapshots()]


@pytest.mark.parametrize("events", [DUMPED[:2], DUMPED[:3], DUMPED], ids=lambda events: str(events[-1]))
@pytest.mark.parametrize("place", sorted(IN_ITS_PLACE))
def test_what_was_destroyed_while_it_was_frozen_and_is_thawed(
        journal: Journal, lives: list[str], events: tuple[Event, ...], place: str,
        capsys: pytest.CaptureFixture[str]) -> None:
    migration = begun(journal, *events, rounds=[{}])
    IN_ITS_PLACE[place](migration)
    done = give_back.roll_back(migration, lambda: "snapshot 2")
    assert done.data["thawed"] and len(lives) == 1
    assert left_of(migration) == migration.copy.last_copy == [f"{ID}.2"] and migration.copy.kept == []
    said = capsys.readouterr().err
    assert f"{layout_of(migration).snapshot(2)} is kept, as it may be the last copy of web" in said
    assert "what web writes from now on may be lost when it ends" in said


@pytest.mark.parametrize("fenced", [False, True])
@pytest.mark.parametrize("events", [DUMPED[:2], DUMPED], ids=lambda events: str(events[-1]))
def test_of_what_is_there_and_is_thawed_nothing_stays(journal: Journal, lives: list[str], events: tuple[Event, ...],
                                                      fenced: bool, capsys: pytest.CaptureFixture[str]) -> None:
    migration = begun(journal, *events, rounds=[{}])
    if fenced:
        fence(migration)
        subvolume(layout_of(migration).rootfs, ITS_OWN)
    else:
        put(migration, ITS_OWN)
    assert give_back.roll_back(migration, lambda: "").data["thawed"]
    assert left_of(migration) == [] and migration.copy.last_copy == []
    assert "last copy" not in capsys.readouterr().err


@pytest.mark.parametrize("events", [DUMPED[:2], DUMPED], ids=lambda events: str(events[-1]))
def test_a_rollback_that_was_killed_after_the_thaw_has_not_forgotten_it(
        journal: Journal, lives: list[str], events: tuple[Event, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    migration = begun(journal, *events)
    with monkeypatch.context() as first, pytest.raises(KeyboardInterrupt):
        first.setattr(give_back, "drop_attempt", killed)
        give_back.roll_back(migration, lambda: "")
    assert str(migration.state) == "rolling-back"
    give_back.roll_back(migration, lambda: "")
    assert left_of(migration) == migration.copy.last_copy == [f"{ID}.2"]


def test_its_dump_is_given_up(journal: Journal, lives: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Its last snapshot, and the rollback comes next."""
    migration = begun(journal, *DUMPED[:2], rounds=[{}])
    with pytest.raises(SourceRunsAgain) as again:
        offer.give_up(migration, There(), TOO_LATE)  # type: ignore[arg-type]
    assert "migrator rollback web" in again.value.hint and "create-dump" not in again.value.hint
    assert f"{layout_of(migration).snapshot(2)} is kept" in capsys.readouterr().err
    assert left_of(migration) == [f"{ID}.1", f"{ID}.2"] and migration.copy.gone
    assert not give_back.roll_back(migration, lambda: "").data["thawed"]
    assert left_of(migration) == migration.copy.last_copy == [f"{ID}.2"]


def test_a_dump_of_it_was_killed(journal: Journal, lives: list[str]) -> None:
    migration = begun(journal, *DUMPED[:2], rounds=[{}])
    freeze_and_offer.heal(migration)
    assert left_of(migration) == [f"{ID}.1", f"{ID}.2"]
    put(migration, ANOTHER)
    with pytest.raises(OutOfOrder, match="is another one"):
        bases.refuse_another(migration, "create-dump")
    give_back.roll_back(migration, lambda: "")
    assert left_of(migration) == [f"{ID}.2"]


def test_its_disk_goes_away_before_that_is_recorded(journal: Journal, lives: list[str]) -> None:
    migration = begun(journal, *DUMPED[:2])
    folder = away_while_it_is_told(migration)
    folder.with_name("unmounted").rename(folder)
    give_back.roll_back(migration, lambda: "")
    assert left_of(migration) == migration.copy.last_copy == [f"{ID}.2"]


def test_nothing_is_forgotten_where_nothing_can_be_recorded(journal: Journal, lives: list[str],
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    migration = begun(journal, *DUMPED)

    def full(*_: object, **__: object) -> None:
        raise JournalBroken(path=journal.path, reason="database or disk is full")

    with monkeypatch.context() as first, pytest.raises(JournalBroken):
        first.setattr(Migration, "move", full)
        give_back.roll_back(migration, lambda: "")
    assert left_of(migration) == [f"{ID}.2"]
    give_back.roll_back(migration, lambda: "")
    assert left_of(migration) == migration.copy.last_copy == [f"{ID}.2"]


def test_of_what_was_started_from_another_disk_its_end_loses_nothing(
        journal: Journal, started: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Without its memory, from what somebody has put behind the fence: that is no copy of it, as far as can be told."""
    migration = begun(journal, *DUMPED, memory=False, stopping=True)
    another_disk(migration)
    assert give_back.roll_back(migration, lambda: "").data["thawed"] and len(started) == 1
    assert left_of(migration) == migration.copy.last_copy == [f"{ID}.2"]
    assert "when it ends" not in capsys.readouterr().err


@WAYS
@pytest.mark.parametrize("destroyed", [True, False])
def test_what_was_destroyed_while_it_was_offered_does_not_run_again(
    journal: Journal, started: list[str], way: dict[str, Any], destroyed: bool, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Nor is that said: the error is what has gone wrong, and beside it stands what has become of the container."""
    migration = begun(journal, *DUMPED[:3], **way, rounds=[{}])
    if not destroyed:
        put(migration, ITS_OWN)
    driver = drive_back.WayBack.__new__(drive_back.WayBack)
    request, container = MoveRequest(NamedContainer("web"), "hostb"), cast("lxc.Container", None)
    driver.move = Move("migrate", request, MoveOptions(), journal, container, migration)
    monkeypatch.setattr(drive_back.WayBack, "_tell", lambda _: "")
    with pytest.raises(type(TOO_LATE) if destroyed else SourceStartedAgain) as raised:
        driver._give_up(TOO_LATE)
    assert ("was started again" in str(raised.value)) is (started == [""]) is not destroyed
    told = " ".join(capfd.readouterr().err.split())
    assert ("LXC no longer knows of web in" in told) is destroyed
    assert migration.copy.last_copy == ([f"{ID}.2"] if destroyed else [])
