# SPDX-License-Identifier: GPL-2.0-or-later
"""The root file system that a restore finds in its place: an earlier stay's gives way, and anybody else's stays."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from migrator.base import boot_clock
from migrator.config import container_config
from migrator.copies import no_memory
from migrator.criu import ran_mark, restore
from migrator.errors.containers import ContainerExists
from migrator.errors.data import SnapshotFailed
from migrator.errors.outcomes import SourceStillStopped
from migrator.host import btrfs, empty_cgroups, lxc, network
from migrator.host.btrfs import Subvolume
from migrator.record.journal import Journal, Migration
from migrator.record.migration_paths import Layout
from migrator.record.states import Event, Role, State
from stages import cleanup
from stages.steps import abandon, finish_here, put_away, restore_here
from stages.steps.cleaner import Cleaner

ID, EARLIER = "0badc0de", "aaaaaaaa"
CONFIG = "lxc.uts.name = web\n"
OWNED = (Event.RECEIVED, Event.IMPORT, Event.IMPORTED, Event.RECEIVE_DUMP, Event.DUMP_RECEIVED, Event.OWN)


class Disk:
    """Folders in the place of subvolumes: the first word of each one's file `uuid` is its own, the second its parent's.

    `full` is how many removals still fail.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = 0
        monkeypatch.setattr(btrfs, "is_subvolume", lambda path: (path / "uuid").is_file())
        for name in ("info", "delete", "snapshot"):
            monkeypatch.setattr(btrfs, name, getattr(self, name))
        monkeypatch.setattr(btrfs, "sync", lambda _: None)

    def make(self, path: Path, uuid: str, parent: str = "") -> Subvolume:
        path.mkdir(parents=True)
        (path / "uuid").write_text(f"{uuid} {parent}")
        (path / f"of {uuid}").touch()
        return self.info(path)

    def info(self, path: Path) -> Subvolume:
        uuid, parent = (path / "uuid").read_text().split(" ")
        return Subvolume(path, uuid=uuid, received_uuid="", read_only=True, generation=1, parent_uuid=parent)

    def delete(self, path: Path) -> None:
        if btrfs.is_subvolume(path):
            if self.full:
                self.full -= 1
                raise SnapshotFailed(path=path, action="deleted", reason="No space left on device")
            shutil.rmtree(path)

    def snapshot(self, source: Path, target: Path, *, read_only: bool) -> Subvolume:
        assert not read_only
        uuid = self.info(source).uuid
        return self.make(target, f"{uuid}'s", uuid)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    monkeypatch.setattr(lxc, "Container", lambda name, lxcpath: SimpleNamespace(name=name, state="STOPPED"))
    monkeypatch.setattr(empty_cgroups, "drop", lambda *_: None)
    monkeypatch.setattr(no_memory, "end", lambda *_: None)
    monkeypatch.setattr(restore, "clear", lambda _: None)
    monkeypatch.setattr(network, "announce", lambda _: SimpleNamespace(join=lambda: None))
    monkeypatch.setattr(network, "bring_back_dad", lambda *_: None)
    monkeypatch.setattr(restore_here.Restore, "_start", lambda _: 4711)
    return Disk(monkeypatch)


@pytest.fixture
def owned(tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> Iterator[Migration]:
    """All of it has arrived; each attempt receives its increment anew, which gets another uuid."""
    with Journal(tmp_path / "journal.db") as journal:
        made = journal.create(id=ID, role=Role.DESTINATION, name="web", lxcpath=tmp_path / "pool", peer="hosta",
                              event=Event.RECEIVE, rounds=[], dad={}, memory=False, increment_uuid="x")
        for event in OWNED:
            made.move(event)
        layout = layout_of(made)
        layout.make_folder()
        layout.spool.mkdir()
        layout.container.mkdir()
        container_config.fence(layout.container, CONFIG, ID, "no")
        received: list[Subvolume] = []

        def receive(*_: object) -> Subvolume:
            btrfs.delete(layout.snapshot(1))
            received.append(disk.make(layout.snapshot(1), f"increment{len(received)}"))
            return received[-1]

        monkeypatch.setattr(restore_here, "receive", receive)
        yield made


def layout_of(migration: Migration) -> Layout:
    return Layout(migration.lxcpath, migration.name, migration.id)


def attempt(migration: Migration) -> None:
    restore_here.Restore(migration, 1000.0, leave=lambda: boot_clock.now() + 1000).run()


def found(migration: Migration, name: str) -> list[str]:
    """Where on this host a file of that name is."""
    return [str(path.parent.relative_to(migration.lxcpath)) for path in migration.lxcpath.rglob(name)]


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
