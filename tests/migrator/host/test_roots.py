# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a process has its root: what is told without asking a file system is what it would have told."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from migrator.host import btrfs, lxc, roots
from migrator.record.migration_paths import Layout
from stages.steps import left_running
from tests import btrfs_roots


@pytest.mark.parametrize("path", ["/", "/proc", "/dev", "/dev/null", "/sys", "/proc/self/root", "/proc/self/cwd"])
def test_it_is_as_the_file_system_has_it(path: str) -> None:
    found = Path(path).stat()
    assert roots.at(Path(path)) == (found.st_dev, found.st_ino)


@pytest.mark.parametrize("name", ["file", "gone", "sparse", "/dev/zero", "/dev/ptmx", "folder"])
def test_what_a_process_has_open_is_as_the_file_system_has_it(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    (tmp_path / "gone").write_bytes(b"x" * 100_000)
    with (tmp_path / "sparse").open("wb") as sparse:
        sparse.truncate(1 << 30)
    fd = os.open(tmp_path / name, os.O_RDONLY | os.O_NOCTTY)
    try:
        if name == "gone":
            (tmp_path / name).unlink()
        os.sync()
        found, wanted = roots.opened(f"/proc/self/fd/{fd}"), os.fstat(fd)
    finally:
        os.close(fd)
    assert found == (wanted.st_mode, wanted.st_nlink, wanted.st_blocks * 512, wanted.st_dev, wanted.st_rdev)
    with pytest.raises(FileNotFoundError):
        roots.opened(f"/proc/self/fd/{fd}")


def test_of_a_process(tmp_path: Path) -> None:
    assert roots.of(os.getpid()) == roots.at(Path("/"))
    with pytest.raises(FileNotFoundError, match="/proc/0/root"):
        roots.of(0)
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "root").symlink_to(tmp_path)
    assert roots.of(7, tmp_path) == roots.at(tmp_path) != roots.at(Path("/"))


def test_the_mount_that_a_root_is_in() -> None:
    root, mount = roots.mounted(os.getpid())
    lines = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    assert root == roots.of(os.getpid()) and str(mount) in {id_ for id_, _, _, _, target, *_ in lines if target == "/"}
    with pytest.raises(FileNotFoundError):
        roots.mounted(0)


def test_whether_its_root_is_the_top_of_a_mount_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that it has come to by a descriptor from elsewhere is not listed; nor what only begins so."""
    assert roots.is_top_of_own_mount(os.getpid())
    root, mount = roots.mounted(os.getpid())
    assert mount
    ids = {line.split()[0] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    shorter = next(id_[:-1] for id_ in sorted(ids) if len(id_) > 1 and id_[:-1] not in ids)
    monkeypatch.setattr(roots, "mounted", lambda _: (root, int(shorter)))
    assert not roots.is_top_of_own_mount(os.getpid())
    monkeypatch.setattr(roots, "mounted", lambda _: (root, None))
    assert roots.is_top_of_own_mount(os.getpid()), "before 5.8"


@pytest.mark.parametrize(("inode", "btrfs_", "is_one"), [(256, True, True), (257, True, False), (256, False, False)])
def test_whether_its_root_is_a_subvolume(monkeypatch: pytest.MonkeyPatch, inode: int, btrfs_: bool,
                                         is_one: bool) -> None:
    monkeypatch.setattr(roots, "of", lambda *_: roots.Root(1, inode))
    btrfs_roots.are(monkeypatch, lambda _: btrfs_)
    assert roots.is_subvolume(os.getpid()) is is_one


def test_what_the_kernel_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the numbers of <linux/fcntl.h>; and nothing below /proc/PID/root is looked up."""
    asked: list[tuple[object, ...]] = []

    class Libc:
        def statx(self, *given: object) -> int:
            asked.append(given[:-1])
            return 0

        def name_to_handle_at(self, _at: int, path: bytes, handle: Any, *_: object) -> int:
            asked.append((path,))
            handle[4:8] = (0x4D if path == b"/proc/7/root" else 0x81).to_bytes(4, "little")
            return 0

    monkeypatch.setattr(roots, "libc", Libc)
    with pytest.raises(OSError, match="/proc/7/fd/3"):  # it has not told what kind of file that is
        roots.opened("/proc/7/fd/3")
    assert asked.pop()[1:] == (b"/proc/7/fd/3", 0x4000 | 0x800, 0x5)
    roots.of(7)
    assert (roots.is_on_btrfs(7), roots.is_on_btrfs(8)) == (True, False)
    assert asked == [(-100, b"/proc/7/root", 0x4000 | 0x800, 0x100), (b"/proc/7/root",), (b"/proc/8/root",)]


def test_what_has_no_handles_is_not_btrfs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Libc:
        def name_to_handle_at(self, *_: object) -> int:
            ctypes.set_errno(errno.EOPNOTSUPP)
            return -1

    monkeypatch.setattr(roots, "libc", Libc)
    assert not roots.is_on_btrfs(7)


def test_nothing_but_btrfs_is_asked_for_a_subvolume(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def is_own(_: Layout, path: Path) -> bool:
        asked.append(path)
        return True

    monkeypatch.setattr(Layout, "is_own", is_own)
    monkeypatch.setattr(Layout, "own_snapshots", lambda _: [])
    monkeypatch.setattr(btrfs, "id_of", lambda path: pytest.fail(f"{path} is asked"))
    here = Layout(Path("/pool"), "web", "0badc0de")
    for answer in (False, True):
        btrfs_roots.are(monkeypatch, {7: answer}.__getitem__)
        assert left_running.all_in_own(here, [7]) == [7] * answer
    assert asked == [Path("/proc/7/root")]


@pytest.mark.parametrize(("root", "top", "btrfs", "within"), [
    ((7, 256), (7, 256), True, True), ((7, 300), (7, 256), True, True),  # or a folder in it, as after chroot(2)
    ((8, 300), (7, 256), True, False),  # a subvolume inside, or beside
    ((7, 300), (7, 256), False, False), ((7, 300), (7, 257), True, False), ((7, 300), (7, 300), False, True),
])
def test_who_lives_in_a_subvolume(monkeypatch: pytest.MonkeyPatch, root: tuple[int, int], top: tuple[int, int],
                                  btrfs: bool, within: bool) -> None:
    """By its device number; a folder on another file system is told by its own alone."""
    told = {Path("/proc/7/root"): root, Path("/pool/web/rootfs"): top}
    monkeypatch.setattr(roots, "at", lambda path: roots.Root(*told[path]))
    btrfs_roots.are(monkeypatch, lambda pid: btrfs and pid == 7)
    assert roots.is_in(7, Path("/pool/web/rootfs")) is within
    assert roots.is_elsewhere(7, Path("/pool/web/rootfs")) is (root != top), "a container's first process has no less"
    monkeypatch.setattr(lxc, "container_processes", lambda _: [7])
    assert lxc.runs_in("web", Path("/pool/web/rootfs")) is within


def test_what_is_gone_lives_nowhere_else(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as ended:
        pass
    assert roots.is_elsewhere(os.getpid(), tmp_path)
    assert not roots.is_elsewhere(ended.pid, tmp_path) and not roots.is_elsewhere(os.getpid(), tmp_path / "gone")


@pytest.mark.parametrize(("made_of", "own"), [("arrived", True), ("another", False), ("", False)])
def test_who_lives_in_a_folder_of_its_own_subvolume(monkeypatch: pytest.MonkeyPatch, made_of: str, own: bool) -> None:
    snapshot = Path("/pool/.migrator/web/0badc0de.1")
    btrfs_roots.are(monkeypatch, lambda _: True)
    monkeypatch.setattr(btrfs, "is_subvolume", lambda path: path == snapshot)
    monkeypatch.setattr(btrfs, "id_of", lambda path: 300 if path == Path("/proc/7/root") else 0)
    monkeypatch.setattr(btrfs, "parent_of", lambda number, path: made_of if (
        number, path) == (300, Path("/proc/7/root")) else "")
    monkeypatch.setattr(btrfs, "info", lambda path: btrfs.Subvolume(path, "arrived", "", True, 1))
    monkeypatch.setattr(Layout, "own_snapshots", lambda _: [snapshot])
    assert left_running.all_in_own(Layout(Path("/pool"), "web", "0badc0de"), [7]) == [7] * own


def test_no_root_is_looked_at_in_another_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "root").symlink_to(tmp_path)
    monkeypatch.setattr(lxc, "PROC", tmp_path)
    monkeypatch.setattr(lxc, "CGROUP", tmp_path / "cgroup")
    honest, looks = os.stat, []

    def told(path: Any, *given: Any, **more: Any) -> os.stat_result:
        looks.append(os.fspath(path))
        return honest(path, *given, **more)

    (tmp_path / "7" / "ns").mkdir()
    (tmp_path / "7" / "ns" / "pid").symlink_to("pid:[2]")  # another one than ours
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", told)
        found = lxc.payload_processes("web"), lxc.lives_in("web", tmp_path), lxc.container_processes("web")
    assert found == ([7], True, [7])
    assert not [path for path in looks if str(path).startswith(f"{tmp_path}/7/root")]
