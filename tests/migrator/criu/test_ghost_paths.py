# SPDX-License-Identifier: GPL-2.0-or-later
"""Where CRIU would make what was deleted."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrator.criu import ghost_paths
from migrator.criu.ghost_paths import FILE, FOLDER, line


@pytest.fixture
def top(tmp_path: Path) -> Iterator[int]:
    """The top of a mount, with a folder `a`, a file `a/file`, and links to a folder outside."""
    (tmp_path / "mount/a/here").mkdir(parents=True)
    (tmp_path / "mount/a/file").touch()
    (tmp_path / "mount/away").symlink_to("/srv")
    (tmp_path / "mount/a/up").symlink_to("../..")
    (tmp_path / "mount/a/nowhere").symlink_to("none")
    fd = os.open(tmp_path / "mount", os.O_PATH)
    yield fd
    os.close(fd)


@pytest.mark.parametrize(("name", "said"), [
    ("/a/gone", ""), ("/gone/b/c", ""), ("/a/file/c", ""), ("a//./gone", ""), ("/", ""), ("/away", ""),
    ("/away/gone", "/away is now a symbolic link"), ("/a/up/gone", "/a/up is now a symbolic link"),
    ("/a/./up/x", "/a/up is now a symbolic link"), ("/a/nowhere/b/gone", "/a/nowhere is now a symbolic link"),
    ("/gone/../../x", "leads upwards"), ("/a/..", "leads upwards"),
])
def test_no_link_may_be_on_the_way(top: int, name: str, said: str) -> None:
    found = ghost_paths.why_not(top, name, folder=False)
    assert said in found and bool(said) == bool(found)


@pytest.mark.parametrize(("name", "said"), [
    ("/a/gone", ""), ("/a/here", "has its name"), ("/a/file", "has its name"), ("/away", "has its name"),
    ("/", "has its name"), ("/away/gone", "symbolic link")])
def test_a_folder_may_not_be_there_again(top: int, name: str, said: str) -> None:
    """CRIU would give it the deleted one's owner, and remove it."""
    found = ghost_paths.why_not(top, name, folder=True)
    assert said in found and bool(said) == bool(found)


def test_where_the_mount_is_does_not_count(top: int) -> None:
    assert not ghost_paths.why_not(top, "/away/a/gone", folder=False, skip=1)
    assert "/away is now a symbolic link" in ghost_paths.why_not(top, "/srv/tmp/away/gone", folder=False, skip=2)


def test_descriptors_are_closed(top: int) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for name in ("/a/gone", "/away/gone", "/a/here/b/c", "/a/here"):
        ghost_paths.why_not(top, name, folder=True)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.fixture
def proc(tmp_path: Path) -> str:
    """The first process, in CRIU's mount namespace: what the mounts 7 and 12 hold, and 10, which is a socket."""
    plain = tmp_path / "proc/4/root/tmp/.criu.mntns.aBc123"
    for name in ("mnt-0000000007/tmp", "mnt-0000000012/his"):
        (plain / name).mkdir(parents=True)
    (plain / "mnt-0000000012/link").symlink_to("/srv")
    os.mknod(plain / "mnt-0000000010", stat.S_IFSOCK)
    targets = ["/", "/tmp/.criu.mntns.aBc123", "/tmp/.criu.mntns.aBc123/mnt-0000000007", "/mnt-0000000008",
               "/tmp/.criu.mntns.aBc123/mnt-0000000012", "/tmp/.criu.mntns.aBc123/9/mnt-0000000009",
               "/tmp/.criu.mntns.aBc123/mnt-0000000010"]
    (tmp_path / "proc/4/mountinfo").write_text("".join(
        f"{number} 1 0:{number} / {target} rw - tmpfs none rw\n" for number, target in enumerate(targets)))
    return str(tmp_path / "proc")


def test_it_is_looked_at_in_the_very_mount(proc: str) -> None:
    ghost_paths.require("", 4, proc)
    ghost_paths.require(line(7, FILE, 0, "/link/gone") + line(12, FOLDER, 1, "/tmp/his/a b\nc"), 4, proc)
    with pytest.raises(PermissionError, match=r"/tmp/link/gone, a deleted folder .*: /tmp/link is now a symbolic link"):
        ghost_paths.require(line(7, FILE, 0, "/gone") + line(12, FOLDER, 1, "/tmp/link/gone"), 4, proc)
    with pytest.raises(PermissionError, match="another one now has its name"):
        ghost_paths.require(line(12, FOLDER, 1, "/tmp/his"), 4, proc)


def test_a_mount_need_not_be_what_can_be_read(proc: str) -> None:
    ghost_paths.require(line(10, FILE, 1, "/log/gone"), 4, proc)


def test_bytes_of_any_kind_in_what_is_mounted(proc: str) -> None:
    """A container may have bound a folder with such a name."""
    mountinfo = Path(proc, "4/mountinfo")
    mountinfo.write_bytes(mountinfo.read_bytes().replace(b" / ", b" /\xff\r\v\xc2\xa0x "))
    ghost_paths.require(line(12, FOLDER, 1, "/tmp/his/gone"), 4, proc)


def test_no_descriptor_of_a_mount_is_left(proc: str) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    ghost_paths.require(line(7, FILE, 0, "/gone") + line(12, FILE, 1, "/tmp/gone"), 4, proc)
    with pytest.raises(PermissionError):
        ghost_paths.require(line(12, FILE, 1, "/tmp/link/gone"), 4, proc)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_it_is_looked_at_in_this_hosts_proc() -> None:
    """Here that is this process, which has no mounts of CRIU's."""
    with pytest.raises(PermissionError, match="cannot be found"):
        ghost_paths.require(line(7, FILE, 0, "/gone"), os.getpid())


@pytest.mark.parametrize("mount", [8, 9, 1, -1])
def test_what_is_on_another_mount_is_not_made(proc: str, mount: int) -> None:
    with pytest.raises(PermissionError, match="cannot be found"):
        ghost_paths.require(line(mount, FILE, 0, "/gone"), 4, proc)
