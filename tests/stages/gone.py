# SPDX-License-Identifier: GPL-2.0-or-later
"""A source after a reboot whose container was removed, or has given its name to another one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from migrator.config import container_config
from migrator.copies import no_memory
from migrator.criu import criu_dump
from migrator.errors.containers import ContainerNotFound, ContainerNotRunning
from migrator.host import btrfs, lxc
from migrator.host.btrfs import Subvolume
from migrator.record.journal import Journal, Migration
from migrator.record.states import Event, Role
from tests.migrator.layouts import layout_of

ID = "0badc0de"
ITS_OWN, ANOTHER = "11111111-2222-3333-4444-555555555555", "66666666-7777-8888-9999-000000000000"


class Stopped:
    """As LXC sees it."""

    state, cgroup = "STOPPED", Path("/nowhere")

    def __init__(self, name: str, lxcpath: Path) -> None:
        self.name, self.lxcpath = name, lxcpath
        self.folder = lxcpath / name
        self.config_file, self.rootfs = self.folder / "config", self.folder / "rootfs"
        if not self.config_file.is_file():
            raise ContainerNotFound(name=name, lxcpath=lxcpath)

    @property
    def init_pid(self) -> int:
        raise ContainerNotRunning(name=self.name, lxcpath=self.lxcpath, state="STOPPED")


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It was rebooted. Folders are subvolumes; their files tell the uuid, and of which one it was taken."""

    def info(path: Path) -> Subvolume:
        uuid, parent = (path / "uuid").read_text().split("<")
        return Subvolume(path, uuid, "", read_only=True, generation=int(path.suffix[1:] or 0), parent_uuid=parent)

    monkeypatch.setattr(btrfs, "is_subvolume", Path.is_dir)
    monkeypatch.setattr(btrfs, "info", info)
    monkeypatch.setattr(btrfs, "delete", lambda path: shutil.rmtree(path, ignore_errors=True))
    monkeypatch.setattr(lxc, "Container", Stopped)
    monkeypatch.setattr(criu_dump, "LOG_FOLDER", tmp_path / "log")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The fence of what is started from its disk: of none but what this migration has stopped."""
    found: list[str] = []

    def start(container: Stopped, _: str, **__: object) -> int:
        found.append(container_config.fence_of(container.config_file.read_text()))
        return 77

    monkeypatch.setattr(no_memory, "start", start)
    monkeypatch.setattr(no_memory, "stay", lambda *_: None)
    return found


def subvolume(path: Path, uuid: str, parent: str = "") -> None:
    path.mkdir(parents=True)
    (path / "uuid").write_text(f"{uuid}<{parent}")


def begun(journal: Journal, *events: Event, **detail: object) -> Migration:
    """With its two snapshots, taken of a root file system that is not there."""
    record = {"pid": 1, "cgroup": "/nowhere", "ports": [], "init": [1, 1], "boot": "an earlier one"} | detail
    migration = journal.create(id=ID, role=Role.SOURCE, name="web", lxcpath=journal.path.parent, peer="root@hostb",
                               event=Event.SEND, destination_host="hostb", destination_lxcpath="/pool",
                               stop_timeout=1, **{"rounds": [], **record})
    for event in events:
        migration.move(event)
    for number in (1, 2):
        subvolume(layout_of(migration).snapshot(number), f"snapshot {number}", ITS_OWN)
    return migration


DUMPED = (Event.SENT, Event.FREEZE, Event.OFFER, Event.TAKEN)
WAYS = pytest.mark.parametrize("way", [{}, {"memory": False, "stopping": True}], ids=["memory", "disk"])


def put(migration: Migration, uuid: str = "") -> Path:
    """A container of that name, with this root file system, or none."""
    folder = layout_of(migration).container
    folder.mkdir()
    (folder / "config").write_text("lxc.uts.name = web\n")
    if uuid:
        subvolume(folder / "rootfs", uuid)
    return folder / "config"
