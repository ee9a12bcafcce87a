# SPDX-License-Identifier: GPL-2.0-or-later
"""pybtrfs over folders, with subvolumes inside of others."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrator.config import container_config
from migrator.host import btrfs, lxc, network
from migrator.record.journal import Journal
from migrator.record.migration_paths import Layout
from migrator.record.states import Event, Role


class Util:
    """pybtrfs, over folders: a subvolume is one that has a file `.subvolume`."""

    class BtrfsUtilError(Exception):
        pass

    def __init__(self) -> None:
        self.fails = 0  # searches that break off
        self.deleted: list[Path] = []

    def is_subvolume(self, path: str) -> bool:
        return (Path(path) / ".subvolume").exists()

    def subvolume_id(self, _: str) -> int:
        return 256

    def SubvolumeIterator(self, path: str, *, top: int) -> Util.Search:
        assert top == 256
        return self.Search(self, Path(path))

    class Search:
        def __init__(self, util: Util, path: Path) -> None:
            self.util, self.path = util, path

        def __enter__(self) -> Util.Search:
            return self

        def __exit__(self, *_: object) -> None: ...

        def __iter__(self) -> Iterator[tuple[str, int]]:
            if self.util.fails:
                self.util.fails -= 1
                raise Util.BtrfsUtilError("Could not look up the inode")
            for found in sorted(self.path.rglob(".subvolume")):
                if found.parent != self.path:
                    yield str(found.parent.relative_to(self.path)), 257

    def delete_subvolume(self, path: str, *, recursive: bool) -> None:
        with self.Search(self, Path(path)) as inside:
            if not recursive and list(inside):
                raise OSError(39, "Directory not empty")
        self.deleted.append(Path(path))
        shutil.rmtree(path)


@pytest.fixture(autouse=True)
def util(monkeypatch: pytest.MonkeyPatch) -> Util:
    made = Util()
    monkeypatch.setattr(btrfs, "_pybtrfs", lambda: made)
    return made


def subvolume(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / ".subvolume").touch()
    return path


@pytest.fixture
def moved(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """A container that has left this host, with its fenced copy."""

    class Copy:
        state = "STOPPED"

        def __init__(self, name: str, lxcpath: Path) -> None:
            self.rootfs = lxcpath / name / "rootfs"

    monkeypatch.setattr(lxc, "Container", Copy)
    monkeypatch.setattr(lxc, "lives_in", lambda *_: False)
    monkeypatch.setattr(network, "silenced", list)
    pool = journal.path.parent
    subvolume(pool / "web" / "rootfs")
    container_config.fence(pool / "web", "lxc.uts.name = web\n", "0badc0de", "moved")
    made = journal.create(id="0badc0de", role=Role.SOURCE, name="web", lxcpath=pool, peer="root@hostb",
                          event=Event.SEND, rounds=[])
    for event in (Event.SENT, Event.FREEZE, Event.OFFER, Event.TAKEN, Event.FINISH, Event.FINISHED):
        made.move(event)
    return Layout(pool, "web", "0badc0de")
