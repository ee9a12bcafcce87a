# SPDX-License-Identifier: GPL-2.0-or-later
"""Directories for memory images: on a tmpfs of their own if memory has room for them, otherwise on disk."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from migrator.base import log, removal

RUNTIME = Path("/run/migrator")
FORMER_MEMORY = Path("/dev/shm/migrator")  # noqa: S108 -- looked at before it is believed
_MS_NOSUID, _MS_NODEV = 2, 4  # mount(2), linux/mount.h
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8  # umount2(2)
_GROWTH = 256 << 20  # bytes that a container's memory may always grow between its check and its dump
LOCK_LIMIT = 5.0  # seconds that others are waited for: a container may be frozen meanwhile
_LEAST = 1 << 20  # bytes of a tmpfs: 0 would mean unlimited
_SPARE = 64 << 20  # bytes that have to be free besides, wherever images go (spool.check_space)
INODES = 50_000  # of a tmpfs, in addition to its size: for `spool.FOLDER_MAX` streams with an index each


def provide_images(folders: Sequence[Path], needed: int, room: int | None = None) -> tuple[Path, str]:
    """Make one of the `folders` as `place_images` and `make_images` do; returns which, and why, in words.

    One program at a time: two that asked at the same moment would be promised the same memory.
    """
    with _one_at_a_time():
        path, why = place_images(folders, needed, room)
        make_images(path, needed, room)
    return path, why


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Others here wait meanwhile, but not for long, as this one may be stopped; nor if nothing can be locked."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            RUNTIME.mkdir(mode=0o711, parents=True, exist_ok=True)
            folder = os.open(RUNTIME, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, folder)
            _lock(folder)
        yield


def _lock(fd: int) -> None:
    until = time.monotonic() + LOCK_LIMIT
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                return log.verbose(f"{RUNTIME} stays locked by another process: memory is used without waiting for it")
            time.sleep(0.01)


def place_images(folders: Sequence[Path], needed: int, room: int | None = None) -> tuple[Path, str]:
    """Which of `Layout.image_folders` should take `needed` bytes of memory images, and why, in words.

    Memory is faster, as long as the same amount remains free: a restore needs the pages twice. What was promised to
    other migrations is not available to this one, nor is anything beyond its `room` (bytes). A tmpfs that would be too
    small for `spool.check_space`, 2 % and a margin, is none: there may be room on disk.
    """
    memory, disk = folders
    available = _bytes_available(room)
    if 2 * (needed + needed // 50 + _SPARE) < available:
        return memory, f"{available >> 20} MiB of memory are available"
    return disk, f"only {max(0, available) >> 20} MiB of memory are available"


def _bytes_available(room: int | None) -> int:
    available = memory_available() - memory_promised()
    return available if room is None else min(available, room)


def make_images(path: Path, needed: int, room: int | None = None) -> None:
    """Create an empty images directory for `needed` bytes, accessible to root only.

    Anyone who could write to it could make root write elsewhere through a symlink, or restore something other than what
    was checked.

    Below RUNTIME it is a freshly mounted tmpfs: /run itself is small by default, and in /dev/shm anybody could have
    created the directory before us. If a tmpfs cannot be mounted, inside a container for example, it is a plain
    directory. It can hold more than was announced, because a container's memory grows until it is frozen, but no more
    than half of what is available, as in `place_images`.
    """
    path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    remove_images(path)
    path.mkdir(mode=0o700)
    if path.parent == RUNTIME:
        try:
            needed = max(0, needed)  # the value comes from the other host
            _mount(path, max(_LEAST, min(needed + max(needed // 2, _GROWTH), _bytes_available(room) // 2)))
        except OSError as error:
            log.verbose(f"No tmpfs could be mounted at {path}: {error}")


def memory_promised() -> int:
    """Bytes of memory that all migrations' images, and the containers restored from them, may still take."""
    promised = 0
    with contextlib.suppress(FileNotFoundError):
        for path in RUNTIME.iterdir():
            with contextlib.suppress(OSError):  # it is just being removed
                if path.is_mount():
                    found = os.statvfs(path)
                    promised += (found.f_bfree + found.f_blocks) * found.f_frsize
    return promised


def former_images() -> list[Path]:
    """Image directories that older versions left in memory; none if someone else owns the place.

    In /dev/shm anybody may create files, but rename only their own (its sticky bit).
    """
    try:
        found = FORMER_MEMORY.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
            return []
        return [path for path in FORMER_MEMORY.iterdir() if re.fullmatch(r"[0-9a-f]{8}", path.name)]
    except OSError:
        return []


def remove_images(path: Path) -> None:
    """Remove an images directory with everything in it, mounted or not; safe to repeat.

    An LXC monitor keeps its log there open, so the mount is detached at once and its memory freed with the last user.
    """
    removal.tree(path, mounted=True)
    if path.is_mount():
        if _libc().umount2(os.fsencode(path), _MNT_DETACH | _UMOUNT_NOFOLLOW) != 0:
            log.verbose(f"{path} could not be unmounted: {os.strerror(ctypes.get_errno())}")
        with contextlib.suppress(OSError):
            path.rmdir()


def _mount(path: Path, size: int) -> None:
    """Mount a tmpfs that holds at most `size` bytes (mount(2), tmpfs(5))."""
    options = f"size={size},nr_inodes={INODES},mode=0700".encode()
    if _libc().mount(b"migrator", os.fsencode(path), b"tmpfs", _MS_NOSUID | _MS_NODEV, options) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def give_images(folder: Path, files: Iterable[Path], group: int) -> None:
    """Let the container's root, gid `group` on this host, read these images in their directory.

    A restored task opens images after it has become that user, except for the time namespace's, which it opens before
    (prepare_timens in criu/timens.c): then it is still root, but without privileges outside its new user namespace. So
    the images stay owned by root, and the container's root reads them through their group.
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
