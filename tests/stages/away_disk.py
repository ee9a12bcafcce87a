# SPDX-License-Identifier: GPL-2.0-or-later
"""A destination whose LXC path is a mount of its own, which goes away and comes back."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from migrator.config import container_config
from migrator.criu import criu_dump, restore
from migrator.host import btrfs, lxc
from migrator.host.btrfs import Subvolume
from migrator.record import image_folders
from migrator.record.journal import Journal
from migrator.record.migration_paths import Layout
from migrator.record.states import Event, Role
from stages.steps import ask_source

ID = "0badc0de"
OWN = (Event.RECEIVED, Event.IMPORT, Event.IMPORTED, Event.RECEIVE_DUMP, Event.DUMP_RECEIVED, Event.OWN)


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing runs, and the source cannot be asked; a subvolume is a folder with the file `uuid`."""
    monkeypatch.setattr(image_folders, "RUNTIME", tmp_path / "run")
    monkeypatch.setattr(criu_dump, "processes", lambda _: [])
    monkeypatch.setattr(restore, "clear", lambda _: None)
    monkeypatch.setattr(btrfs, "sync", lambda _: None)
    monkeypatch.setattr(btrfs, "is_subvolume", lambda path: (path / "uuid").is_file())
    monkeypatch.setattr(btrfs, "info", lambda path: Subvolume(
        path, (path / "uuid").read_text(), "", read_only=True, generation=1, parent_uuid="snapshot"))
    monkeypatch.setattr(lxc, "CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(lxc, "container_processes", lambda _: [])
    monkeypatch.setattr(lxc, "_lxc", lambda: SimpleNamespace(Container=lambda *_: SimpleNamespace(
        state="STOPPED", defined=True, get_config_item=lambda _: "")))
    monkeypatch.setattr(ask_source, "state_of_source", lambda *_: None)


class There:
    """A destination; its LXC path is a mount of its own."""

    def __init__(self, journal: Journal, pool: Path, *events: Event) -> None:
        pool.mkdir()
        self.pool, self.disk = pool, pool.with_name("disk")
        self.migration = journal.create(
            id=ID, role=Role.DESTINATION, name="web", lxcpath=pool, peer="hosta", event=Event.RECEIVE, rounds=[],
            dad={}, image_files=["core-1.img"], attempt=1)
        for event in events:
            self.migration.move(event)
        self.layout = Layout(pool, "web", ID)
        self.layout.make_folder()
        self.layout.spool.mkdir()
        self.layout.container.mkdir()
        for path, uuid in ((self.layout.snapshot(1), "snapshot"), (self.layout.rootfs, "own")):
            path.mkdir()
            (path / "uuid").write_text(uuid)
        images = self.layout.image_folders()[1]
        images.mkdir()
        (images / "core-1.img").touch()
        container_config.fence(self.layout.container, "lxc.uts.name = web\n", ID, "it is being moved here")

    def umount(self) -> None:
        self.pool.rename(self.disk)
        self.pool.mkdir()

    def is_open(self) -> bool:
        return any(os.path.realpath(path) == str(self.pool) for path in Path("/proc/self/fd").iterdir())

    def mount(self) -> None:
        for path in (self.pool, *self.pool.rglob("*")):
            assert path.is_dir(), "nothing was written below the mount point"
        self.pool.rename(self.pool.with_name("below"))
        self.disk.rename(self.pool)

    @property
    def service(self) -> Any:
        return SimpleNamespace(migration=lambda _: self.migration, find=lambda _: self.migration,
                               known=lambda _: self.migration, end_behind=lambda: None, refuse_more=lambda _: None,
                               refuse_data=lambda _: None)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., There]]:
    with Journal(tmp_path / "journal.db") as journal:
        yield lambda *events: There(journal, tmp_path / "pool", *OWN, *events)
