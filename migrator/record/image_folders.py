# SPDX-License-Identifier: GPL-2.0-or-later
"""Folders for memory images: in memory, on a tmpfs of their own, where it has room for them, else on disk."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from migrator.base import log, removal

RUNTIME = Path("/run/migrator")
FORMER_MEMORY = Path("/dev/shm/migrator")  # noqa: S108 -- looked at before it is believed
_MS_NOSUID, _MS_NODEV = 2, 4  # mount(2), linux/mount.h
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8  # umount2(2)
_GROWTH = 256 << 20  # bytes that a container's memory may always grow by between its check and its dump
_LEAST = 1 << 20  # bytes of a tmpfs: 0 would mean without a limit
INODES = 50_000  # of a tmpfs, whose size does not count them: for `spool.FOLDER_MAX` streams, with an index each


def place_images(folders: Sequence[Path], needed: int, room: int | None = None) -> tuple[Path, str]:
    """Which of `Layout.image_folders` `needed` bytes of memory images should go to, and why, in words.

    Memory is the faster place, as long as what is then left of it is as much again: a restore needs the pages twice.
    What other migrations were promised is not there for this one, nor what is beyond the `room` that it has (bytes).
    """
    memory, disk = folders
    available = _bytes_available(room)
    if 2 * needed < available:
        return memory, f"{available >> 20} MiB of memory are available"
    return disk, f"only {max(0, available) >> 20} MiB of memory are available"


def _bytes_available(room: int | None) -> int:
    available = memory_available() - memory_promised()
    return available if room is None else min(available, room)


def make_images(path: Path, needed: int, room: int | None = None) -> None:
    """An empty images folder for `needed` bytes, only for root: whoever could write there could have root write
    elsewhere, through a link, or restore something else than what was checked.

    Below RUNTIME it is a tmpfs that has just been mounted: /run itself is small by default, and in /dev/shm anybody
    could have made a folder before us. Where it cannot be mounted (in a container, for example) it is a plain folder.
    It holds more than was announced, as a container's memory grows until it is frozen, but no more than half of what
    is available, as in `place_images`.
    """
    path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    remove_images(path)
    path.mkdir(mode=0o700)
    if path.parent == RUNTIME:
        try:
            needed = max(0, needed)  # as another host has it
            _mount(path, max(_LEAST, min(needed + max(needed // 2, _GROWTH), _bytes_available(room) // 2)))
        except OSError as error:
            log.verbose(f"No tmpfs could be mounted at {path}: {error}")


def memory_promised() -> int:
    """Bytes that the images of all migrations may still take of memory, and the containers restored from them."""
    promised = 0
    with contextlib.suppress(FileNotFoundError):
        for path in RUNTIME.iterdir():
            with contextlib.suppress(OSError):  # it goes at this moment
                if path.is_mount():
                    found = os.statvfs(path)
                    promised += (found.f_bfree + found.f_blocks) * found.f_frsize
    return promised


def former_images() -> list[Path]:
    """Folders of memory images that older versions have left in memory; none where somebody else has made their place.

    Anybody may make things in /dev/shm, but rename only what is their own (its sticky bit).
    """
    try:
        found = FORMER_MEMORY.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
            return []
        return [path for path in FORMER_MEMORY.iterdir() if re.fullmatch(r"[0-9a-f]{8}", path.name)]
    except OSError:
        return []


def remove_images(path: Path) -> None:
    """Remove an images folder with all that is in it, mounted or not; safe to repeat.

    A monitor of LXC's keeps its log there open, so the mount goes at once and its memory with the last who uses it.
    """
    removal.tree(path, mounted=True)
    if path.is_mount():
        if _libc().umount2(os.fsencode(path), _MNT_DETACH | _UMOUNT_NOFOLLOW) != 0:
            log.verbose(f"{path} could not be unmounted: {os.strerror(ctypes.get_errno())}")
        with contextlib.suppress(OSError):
            path.rmdir()


def _mount(path: Path, size: int) -> None:
    """mount(2) of a tmpfs that holds `size` bytes at most (tmpfs(5))."""
    options = f"size={size},nr_inodes={INODES},mode=0700".encode()
    if _libc().mount(b"migrator", os.fsencode(path), b"tmpfs", _MS_NOSUID | _MS_NODEV, options) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def give_images(folder: Path, files: Iterable[Path], group: int) -> None:
    """Let the container's root, group id `group` on this host, read these images in their folder.

    A restored task opens images after it has become that user, but the one of the time namespace before (prepare_timens
    in criu/timens.c): then it is still root, without any privilege outside its new user namespace. So they stay root's,
    and the container's root reads them as their group.
    """
    for path, mode in ((folder, 0o750), *((path, 0o640) for path in files)):
        if group:
            os.chown(path, -1, group, follow_symlinks=False)
        path.chmod(mode)


def memory_available() -> int:
    """Bytes that programs can still use without swapping (MemAvailable in proc_meminfo(5))."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
