# SPDX-License-Identifier: GPL-2.0-or-later
"""Mounts that only follow another one: in CRIU's images, and made so again after a restore."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from migrator.criu import slave_mounts
from migrator.host.mount_tables import MountTables
from tests.migrator.criu_images import image, message

OWN, FIRST, SECOND = "mountpoints-13.img", "mountpoints-16.img", "mountpoints-17.img"


def mount(id_: int, root: str, shared: int = 0, master: int = 0) -> bytes:
    """A mnt_entry, with a field in it that nothing here knows."""
    sharing = [(number, value) for number, value in ((10, shared), (11, master)) if value]
    return message((1, 5), (2, id_), (3, 0x7C), (6, root), (7, f"./{id_}"), (8, "tmpfs"), (9, ""), *sharing, (99, b"x"))


def moved(id_: int, root: str, shared: int, master: int) -> bytes:
    """The same where it is in a group that it was not in, which is written behind all else."""
    return mount(id_, root, master=master) + message((10, shared))


def images(own: list[bytes], *services: list[bytes]) -> dict[str, bytes]:
    names = dict(zip((OWN, FIRST, SECOND), (own, *services), strict=False))
    return {name: image("mounts", *mounts) for name, mounts in names.items()}


def test_each_becomes_a_group_of_its_own() -> None:
    before = images([mount(73, "/", shared=24), mount(75, "/lock", shared=131)],
                    [mount(305, "/", 75, 24), mount(306, "/propagate/a", master=24)],
                    [mount(405, "/", 76, 24), mount(406, "/propagate/bb", master=24)])
    assert slave_mounts.separated(before) == images(
        [mount(73, "/", shared=24), mount(75, "/lock", shared=131)],
        [mount(305, "/", 75, 24), moved(306, "/propagate/a", 132, 24)],
        [mount(405, "/", 76, 24), moved(406, "/propagate/bb", 133, 24)])


@pytest.mark.parametrize("roots", [
    ["/propagate/a"], ["/a", "/a"], ["/a", "/a/b", "/a/c"], ["/", "/a", "/b"], [],
])
def test_what_the_kernel_lets_criu_copy_stays(roots: list[str]) -> None:
    before = images([mount(73, "/", shared=24)], [mount(300 + number, root, master=24)
                                                  for number, root in enumerate(roots)])
    assert slave_mounts.separated(before) == before


def test_names_that_only_begin_alike_do_not_lie_in_each_other() -> None:
    before = images([mount(73, "/", shared=24)], [mount(306, "/a", master=24), mount(307, "/ab", master=24)])
    assert slave_mounts.separated(before)[FIRST] == image("mounts", moved(306, "/a", 25, 24), moved(307, "/ab", 26, 24))


def test_of_different_masters_each_counts_by_itself() -> None:
    before = images([mount(73, "/", shared=24), mount(74, "/", shared=25)],
                    [mount(306, "/a", master=24), mount(307, "/b", master=25)])
    assert slave_mounts.separated(before) == before


def test_what_is_no_image_is_refused() -> None:
    with pytest.raises(ValueError, match=f"{OWN} is not a CRIU image"):
        slave_mounts.separated(images([], [mount(306, "/a", master=24)]) | {OWN: b"something else"})


# A process in a mount namespace of its own, with a mount there that follows another one, and one that is shared too.
_CHILD = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def mount(source, target, kind, flags):
    if libc.mount(source, target, kind, ctypes.c_ulong(flags), None):
        sys.exit(os.strerror(ctypes.get_errno()))
PRIVATE, REC, SLAVE, SHARED, BIND = 1 << 18, 1 << 14, 1 << 19, 1 << 20, 1 << 12
libc.unshare(0x20000)
mount(None, b"/", None, PRIVATE | REC)
top = sys.argv[1].encode()
mount(b"tmpfs", top, b"tmpfs", 0)
mount(None, top, None, SHARED)
for name in (b"/top", b"/a b", b"/c"):
    os.mkdir(top + name)
for name in (b"/a b", b"/c"):
    mount(top + b"/top", top + name, None, BIND)
    mount(None, top + name, None, SLAVE)
mount(None, top + b"/c", None, SHARED)
print(flush=True)
for line in sys.stdin:
    mount(None, top + b"/a b", None, SHARED)  # as CRIU leaves it
    print(flush=True)
"""
# In a program without other threads, as the one that CRIU starts: they would share what setns(2) changes.
_MAKE = """
import os, sys
from migrator.criu import slave_mounts
slave_mounts.make_slaves(sys.argv[2], [int(sys.argv[1])])
print(os.readlink("/proc/self/ns/mnt"))
"""


def test_they_follow_again_and_nothing_else_changes(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", _CHILD, str(tmp_path)], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout
        try:
            process.stdout.readline()
            top = str(tmp_path).replace("\\", "\\134")
            before = list(slave_mounts._kinds(process.pid, MountTables()))
            record = slave_mounts.record([1 << 22, process.pid, process.pid])
            assert record == f"{process.pid} {top}/a\\040b\n"
            process.stdin.write("\n")
            process.stdin.flush()
            process.stdout.readline()
            assert (f"{top}/a\\040b", {"master", "shared"}) in slave_mounts._kinds(process.pid, MountTables())
            came_back = subprocess.run(
                [sys.executable, "-c", _MAKE, str(process.pid), f"{process.pid} {top}/gone\n{record}"],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=True).stdout
            assert list(slave_mounts._kinds(process.pid, MountTables())) == before
            assert came_back.strip() == str(Path("/proc/self/ns/mnt").readlink())
        finally:
            process.kill()
