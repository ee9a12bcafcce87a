# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that are watched on btrfs, whose names the kernel does not know. Needs root, but not the two hosts."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrator.preflight.facts import watch_facts
from migrator.preflight.facts.mounts_seen import Mounted

IMAGE_SIZE = 256 << 20  # bytes; mkfs.btrfs wants at least 109 MiB
IN_MODIFY = 2  # sys/inotify.h


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Path]:
    """A file system in which each of two subvolumes lies in the one before."""
    found, image = tmp_path / "pool", tmp_path / "image"
    found.mkdir()
    with image.open("wb") as file:
        file.truncate(IMAGE_SIZE)
    subprocess.run(["mkfs.btrfs", "-q", image], check=True, capture_output=True)
    mount(image, found)
    for name in ("srv", "srv/below"):
        subprocess.run(["btrfs", "subvolume", "create", found / name], check=True, capture_output=True)
    yield found
    subprocess.run(["umount", found], check=True)


def mount(image: Path, place: Path) -> None:
    subprocess.run(["mount", "-t", "btrfs", "-o", "loop", image, place], check=True)


def watch_of(path: Path) -> tuple[str, int, int, bytes]:
    """What the kernel tells of a watch of this file."""
    fd = ctypes.CDLL(None).inotify_init1(os.O_CLOEXEC)
    try:
        assert ctypes.CDLL(None).inotify_add_watch(fd, os.fsencode(path), IN_MODIFY) > 0
        (found,) = filter(None, map(watch_facts.parse_watch, watch_facts.fdinfo_lines(f"/proc/self/fd/{fd}")))
        return found
    finally:
        os.close(fd)


@pytest.mark.parametrize("inside", ["", "srv", "srv/below"])
def test_a_name_that_was_dropped_is_found_in_any_subvolume(pool: Path, inside: str) -> None:
    path = pool / inside / "folder/file"
    path.parent.mkdir()
    path.touch()
    _, inode, handle_type, handle = watch_of(path)
    subprocess.run(["umount", pool], check=True)
    mount(pool.with_name("image"), pool)  # which has no names in memory
    above = os.open(pool, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert watch_facts._by_handle(above, handle_type, handle)[0] == "/", "its name is known already"
    finally:
        os.close(above)
    assert watch_facts._resolve(os.getpid(), str(pool), Mounted(), inode, handle_type, handle) == ("file", str(path))
