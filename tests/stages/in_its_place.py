# SPDX-License-Identifier: GPL-2.0-or-later
"""A restore that is tried, and what it may find in the place of the root file system. Folders are subvolumes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from migrator.base import boot_clock
from migrator.config import container_config
from migrator.copies import no_memory
from migrator.criu import restore
from migrator.errors.data import SnapshotFailed
from migrator.host import btrfs, empty_cgroups, lxc, network
from migrator.host.btrfs import Subvolume
from migrator.record.journal import Journal, Migration
from migrator.record.states import Event, Role
from stages.steps import restore_here
from tests.migrator.layouts import layout_of

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


def attempt(migration: Migration) -> None:
    restore_here.Restore(migration, 1000.0, leave=lambda: boot_clock.now() + 1000).run()


def found(migration: Migration, name: str) -> list[str]:
    """Where on this host a file of that name is."""
    return [str(path.parent.relative_to(migration.lxcpath)) for path in migration.lxcpath.rglob(name)]
