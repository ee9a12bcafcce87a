# SPDX-License-Identifier: GPL-2.0-or-later
"""The root file system that a restore finds in its place: an earlier stay's gives way, and anybody else's stays."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

from typing import cast

import pytest

from migrator.config import container_config
from migrator.criu import ran_mark
from migrator.errors.containers import ContainerExists
from migrator.errors.outcomes import SourceStillStopped
from migrator.host.btrfs import Subvolume
from migrator.record.journal import Migration
from migrator.record.states import Event, Role, State
from stages import cleanup
from stages.steps import abandon, finish_here, put_away, restore_here
from stages.steps.cleaner import Cleaner
from tests.migrator.layouts import layout_of
from tests.stages.in_its_place import CONFIG, EARLIER, ID, Disk, attempt, disk, found, owned  # noqa: F401 -- fixtures


def stayed(migration: Migration, disk: Disk) -> None:
    """The container was here before, and has left; import-data has found that."""
    layout = layout_of(migration)
    went = migration.journal.create(id=EARLIER, role=Role.SOURCE, name="web", lxcpath=migration.lxcpath, peer="hosta",
                                    event=Event.SEND, rounds=[])
    for event in (Event.SENT, Event.FREEZE, Event.OFFER, Event.TAKEN, Event.FINISH, Event.FINISHED):
        went.move(event)
    disk.make(layout.rootfs, "earlier")
    container_config.fence(layout.container, CONFIG, EARLIER, "it has left")
    put_away.keep_old(layout)
    container_config.fence(layout.container, CONFIG, ID, "it arrives")


def test_that_of_an_earlier_stay_gives_way(owned: Migration, disk: Disk) -> None:
    stayed(owned, disk)
    attempt(owned)
    assert found(owned, "of earlier") == [f".migrator/web+/{ID}.old/rootfs"]
    assert found(owned, "of increment0's") == ["web/rootfs"]
    told = [event for event in owned.events() if event.told.rootfs_uuid]
    assert told[0].step == "rootfs" and told[0].told.rootfs_uuid == "increment0's", "before it can run"


@pytest.mark.parametrize("came", ["before", "while it was received"])
def test_a_strangers_stays(owned: Migration, disk: Disk, monkeypatch: pytest.MonkeyPatch, came: str) -> None:
    """Somebody's backup, put where the container is to be, or a container made there meanwhile."""
    layout, receive = layout_of(owned), vars(restore_here)["receive"]

    def meanwhile(*of: object) -> Subvolume:
        container_config.write_file(layout.container / "config", f"{CONFIG}# a stranger's\n")
        disk.make(layout.rootfs, "precious")
        return cast("Subvolume", receive(*of))

    if came == "before":
        disk.make(layout.rootfs, "precious")
    else:
        monkeypatch.setattr(restore_here, "receive", meanwhile)
    with pytest.raises(SourceStillStopped) as failed:
        attempt(owned)
    assert isinstance(failed.value.cause, ContainerExists) and owned.state is State.OWNED
    abandon._abandon(owned, [])
    assert str(owned.state) == State.ABANDONED and found(owned, "of precious") == ["web/rootfs"]


def test_a_strangers_beside_an_earlier_stays_own(owned: Migration, disk: Disk,
                                                 capfd: pytest.CaptureFixture[str]) -> None:
    """Put there when the earlier stay's had been put aside: both stay, and `cleanup` without a name takes neither."""
    stayed(owned, disk)
    layout = layout_of(owned)
    layout.rootfs.rename(layout.old / "rootfs")
    disk.make(layout.rootfs, "precious")
    with pytest.raises(SourceStillStopped):
        attempt(owned)
    abandon._abandon(owned, [])
    cleanup._clean_folder(Cleaner(dry_run=False), owned.journal, layout.work, set())
    assert found(owned, "of precious") == ["web/rootfs"] and str(owned.state) == State.ABANDONED
    assert found(owned, "of earlier") == [f".migrator/web+/{ID}.old/rootfs"] and (layout.old / "config").is_file()
    assert str(layout.old) in capfd.readouterr().err.replace("\n", "")


def test_what_a_failed_restore_could_not_remove_is_known_by_the_next(owned: Migration, disk: Disk,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """Its increment is received anew, which is all that tells what was made of it."""
    stayed(owned, disk)

    def fails(_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as failing:
        failing.setattr(restore_here.Restore, "_start", fails)
        disk.full = 1
        with pytest.raises(SourceStillStopped):
            attempt(owned)
        assert found(owned, "of increment0's") == ["web/rootfs"], "it was left for now"
        with pytest.raises(SourceStillStopped):
            attempt(owned)
        assert found(owned, "of earlier") == ["web/rootfs"] and found(owned, "of increment*") == [
            f".migrator/web/{ID}.1"]
    attempt(owned)
    assert found(owned, "of increment2's") == ["web/rootfs"]
    assert found(owned, "of earlier") == [f".migrator/web+/{ID}.old/rootfs"]


def test_without_an_earlier_stay_nothing_that_was_put_aside_is_removed(owned: Migration, disk: Disk) -> None:
    """An older version put aside whatever was there."""
    attempt(owned)
    layout = layout_of(owned)
    disk.make(layout.old / "rootfs", "precious")
    finish_here.end_here(owned)
    assert found(owned, "of precious") == [f".migrator/web+/{ID}.ran.1"] and not layout.old.exists()
    cleaner = Cleaner(dry_run=False)
    cleanup._clean_folder(cleaner, owned.journal, layout.work, set())
    assert cleaner.kept == [str(layout.aside().with_suffix(".1"))] and cleaner.removed == []


@pytest.mark.parametrize("stay", [False, True])
@pytest.mark.parametrize("end", ["that was recorded", "of an abandon that broke off"])
def test_what_a_power_cut_has_put_back_is_put_aside_again(owned: Migration, disk: Disk, stay: bool, end: str) -> None:
    """btrfs had not committed what was done when a restore that had let it run failed, and the journal had."""
    layout = layout_of(owned)
    if stay:
        stayed(owned, disk)
        layout.rootfs.rename(layout.old / "rootfs")
    disk.make(layout.rootfs, "it", disk.make(layout.snapshot(1), "increment").uuid)
    ran_mark.record(str(ran_mark.mark(layout.spool)))
    if end != "that was recorded":
        owned.move(Event.ABANDON, on_disk=True, kept=[])
    abandon._abandon(owned, [])
    assert str(owned.state) == State.ABANDONED and not layout.spool.exists()
    assert found(owned, "of it") == [f".migrator/web+/{ID}.ran.1"]
    assert found(owned, "of earlier") == (["web/rootfs"] if stay else [])
    assert layout.container.exists() is stay
