# SPDX-License-Identifier: GPL-2.0-or-later
"""A real process that changes its root while it is looked at, as any user's may, to one that never answers."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from migrator.copies import forked, remains, second_start
from migrator.copies.thawing import Frozen
from migrator.host import btrfs, lxc, monitor_socket, roots, subvolume_uuids
from migrator.record.migration_paths import Layout
from stages.steps import left_running, renamed

LAYOUT = Layout(Path("/pool"), "web", "0badc0de")
FROZEN = Frozen("0badc0de", "web", Path("/pool"), 1, Path("/cgroup"), ())
# From one folder to the other and back, with each byte that it is sent, which it answers.
CHANGES = """
import os, sys
top = os.open("/", os.O_RDONLY)
while True:
    for folder in sys.argv[1:]:
        os.fchdir(top)
        os.chroot(".")
        os.chroot(folder)
        os.write(1, b".")
        if not os.read(0, 1):
            sys.exit()
"""
LOOKS: dict[str, Callable[[int], object]] = {
    "_is_restored": lambda _: left_running.kill(LAYOUT, 1),
    "is_in_own": lambda pid: left_running.all_in_own(LAYOUT, [pid]),
    "_lies_in": lambda pid: forked.those([pid], lambda root: renamed._lies_in(root, {"none"})),
    "_disk_of": remains._disk_of,
    "_made_of": lambda _: second_start._made_of(FROZEN, "none"),
}


@pytest.fixture
def changing(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    folders = [tmp_path / "btrfs", tmp_path / "silent"]
    for folder in folders:
        folder.mkdir()
    with subprocess.Popen([sys.executable, "-c", CHANGES, *folders], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          bufsize=0) as program:
        assert program.stdout and program.stdout.read(1) == b"."
        yield program


def no_fork() -> int:
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def opened() -> list[Path]:
    return sorted(Path("/proc/self/fd").iterdir())


@pytest.mark.parametrize("look", LOOKS)
def test_what_was_looked_at_is_asked(changing: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch,
                                     look: str) -> None:
    """Each time it is told to be on btrfs, and has another root by then."""
    looked, asked = list[os.stat_result](), list[bool]()

    class Libc:
        statx = roots.libc().statx

        def name_to_handle_at(self, _at: int, path: bytes, handle: Any, *_: object) -> int:
            looked.append(Path(os.fsdecode(path)).stat())
            assert changing.stdin and changing.stdout
            changing.stdin.write(b".")
            assert changing.stdout.read(1) == b"."
            assert not os.path.samestat(looked[-1], Path(f"/proc/{changing.pid}/root").stat())
            handle[4:8] = (0x4D).to_bytes(4, "little")
            return 0

    def answer(path: Path, what: Any) -> Any:
        asked.append(os.path.samestat(path.stat(), looked[-1]))
        return what

    before = opened()
    with monkeypatch.context() as patch:
        patch.setattr(roots, "libc", Libc)
        patch.setattr(os, "fork", no_fork)  # so that it is asked by this process
        patch.setattr(btrfs, "is_subvolume", lambda path: answer(path, True))
        patch.setattr(btrfs, "info", lambda path: answer(path, btrfs.Subvolume(path, "its", "", True, 1)))
        patch.setattr(btrfs, "uuid_around", lambda path: answer(path, "its"))
        patch.setattr(btrfs, "id_of", lambda path: answer(path, 300))
        patch.setattr(btrfs, "parent_of", lambda _, path: answer(path, "its"))
        patch.setattr(subvolume_uuids, "ancestors", lambda path: answer(path, ["its"]))
        patch.setattr(Layout, "own_snapshots", lambda _: [])
        patch.setattr(lxc, "container_processes", lambda _: [changing.pid])
        patch.setattr(lxc, "cgroup_of", lambda _: Path("/sys/fs/cgroup/lxc.payload.web"))
        patch.setattr(second_start, "is_start", lambda _: True)
        patch.setattr(monitor_socket, "may_be_its", lambda *_: True)
        LOOKS[look](changing.pid)
    assert asked and all(asked), look
    assert opened() == before


def test_it_is_held_and_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would be asked for the permission; and what is not on btrfs is not given to anybody."""
    (tmp_path / "7").mkdir()
    (tmp_path / "7/root").symlink_to(tmp_path)
    monkeypatch.setattr(roots, "PROC", tmp_path)
    for told in (True, False):
        monkeypatch.setattr(roots, "_lies_on_btrfs", lambda path, told=told: told and path.samefile(tmp_path))
        with roots.on_btrfs(7) as root:
            assert (root is not None) is told
            if root:
                assert fcntl.fcntl(int(root.name), fcntl.F_GETFL) & os.O_PATH
    with pytest.raises(FileNotFoundError), roots.on_btrfs(8):
        pass
