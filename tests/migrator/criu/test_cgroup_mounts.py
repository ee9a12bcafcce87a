# SPDX-License-Identifier: GPL-2.0-or-later
"""What is bound from a container's cgroups, in CRIU's images."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from migrator.criu import cgroup_mounts
from tests.migrator.criu_images import image, message

CGROUP = "/lxc.payload.c1"
OWN = "399 354 0:38 /lxc.payload.c1 /sys/fs/cgroup rw shared:175 - cgroup2 none rw\n"
SERVICE = (OWN.replace("399", "663")
           + r"681 663 0:38 /lxc.payload.c1/a\134x2db/memory.pressure /sys/m rw shared:288 - cgroup2 none rw" "\n"
           "682 663 0:38 /lxc.payload.c10/memory.pressure /sys/n rw shared:289 - cgroup2 none rw\n"
           "683 663 0:38 /lxc.payload.c1/gone//deleted /sys/o rw shared:290 - cgroup2 none rw\n"
           "684 663 0:38 / /sys/p rw shared:291 - cgroup2 none rw\n"
           "685 663 0:39 /lxc.payload.c1/x /sys/q rw shared:292 - tmpfs none rw\n")
BELOW = {681: rb"/a\x2db/memory.pressure"}


def mount(id_: int, root: str = "/", type_: int = 23) -> bytes:
    """A mnt_entry, with a field in it that nothing here knows."""
    return message((1, type_), (2, id_), (3, 38), (6, root), (7, f"./{id_}"), (99, b"later"))


def process(proc: Path, pid: int, namespace: str, mountinfo: str) -> int:
    folder = proc / str(pid)
    (folder / "ns").mkdir(parents=True)
    (folder / "ns/mnt").symlink_to(f"mnt:[{namespace}]")
    (folder / "mountinfo").write_text(mountinfo)
    return pid


def test_what_each_shows_of_the_container_s_own(tmp_path: Path) -> None:
    pids = [process(tmp_path, 1, "a", OWN), process(tmp_path, 2, "b", SERVICE), process(tmp_path, 3, "b", "damaged"), 4]
    assert cgroup_mounts.below(pids, CGROUP, str(tmp_path)) == BELOW


def test_it_is_named_where_the_image_says_the_top() -> None:
    before = image("mounts", mount(663), mount(681), mount(700), mount(5, "/x"))
    assert cgroup_mounts.named(before, "m", BELOW) == image(
        "mounts", mount(663), mount(681, r"/a\x2db/memory.pressure"), mount(700), mount(5, "/x"))


@pytest.mark.parametrize("record", [mount(681, "/elsewhere"), mount(681, type_=5), mount(682)])
def test_it_is_not(record: bytes) -> None:
    before = image("mounts", record)
    assert cgroup_mounts.named(before, "m", BELOW) == before


def test_only_images_that_change_are_written(tmp_path: Path) -> None:
    proc, images = tmp_path / "proc", tmp_path / "images"
    images.mkdir()
    pids = [process(proc, 1, "a", OWN), process(proc, 2, "b", SERVICE)]
    (images / "mountpoints-13.img").write_bytes(image("mounts", mount(399)))
    (images / "mountpoints-14.img").write_bytes(image("mounts", mount(681)))
    written = (images / "mountpoints-13.img").stat().st_mtime_ns
    cgroup_mounts.name_roots(images, pids, CGROUP, str(proc))
    assert (images / "mountpoints-14.img").read_bytes() == image("mounts", mount(681, r"/a\x2db/memory.pressure"))
    assert (images / "mountpoints-13.img").stat().st_mtime_ns == written
    (images / "mountpoints-13.img").write_bytes(b"something else")
    with pytest.raises(ValueError, match="not a CRIU image"):
        cgroup_mounts.name_roots(images, pids, CGROUP, str(proc))
    shutil.rmtree(proc)
    cgroup_mounts.name_roots(images, pids, CGROUP, str(proc))  # who has no such mount has none of this looked at
