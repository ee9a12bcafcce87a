# SPDX-License-Identifier: GPL-2.0-or-later
"""Copy the contents of a small folder into an empty one: files, folders and symlinks, with owners, modes and times."""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from migrator.guest import regular_files

ENTRIES_MAX = 1000  # files, folders and links in all
BYTES_MAX = 16 << 20  # of all files together
DEPTH_MAX = 16  # folders in each other
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Left:
    """How much may still be copied, since whoever fills the folder could otherwise keep us copying forever."""

    def __init__(self) -> None:
        self.entries, self.bytes = ENTRIES_MAX, BYTES_MAX

    def take(self, size: int) -> None:
        """Count an entry, or part of a file, of `size` bytes; raises OSError when it is too much."""
        self.entries, self.bytes = self.entries - 1, self.bytes - size
        if self.entries < 0 or self.bytes < 0:
            raise OSError(errno.EFBIG, "it holds too much to be copied")


def copy(source: int, target: int, left: Left, depth: int = 0) -> None:
    """Copy what one open folder holds into another; `left` limits how much, over all levels.

    Raises OSError, also for anything other than a file, folder or symlink. The files' owners may already be able to
    delete the copies, or to replace them by symlinks, while this goes on.
    """
    if depth > DEPTH_MAX:
        raise OSError(errno.EFBIG, "it holds folders nested too deeply to be copied")
    for name in os.listdir(source):
        with contextlib.suppress(FileNotFoundError):
            _entry(name, source, target, left, depth)


def _entry(name: str, source: int, target: int, left: Left, depth: int) -> None:
    found = os.stat(name, dir_fd=source, follow_symlinks=False)
    left.take(0)
    if stat.S_ISDIR(found.st_mode):
        os.mkdir(name, 0o700, dir_fd=target)
        inner, made = (os.open(name, _FOLDER, dir_fd=each) for each in (source, target))
        try:
            copy(inner, made, left, depth + 1)
            _describe(made, found)
        finally:
            os.close(inner)
            os.close(made)
    elif stat.S_ISLNK(found.st_mode):
        os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
        os.chown(name, found.st_uid, found.st_gid, dir_fd=target, follow_symlinks=False)
        os.utime(name, ns=(found.st_atime_ns, found.st_mtime_ns), dir_fd=target, follow_symlinks=False)
    elif stat.S_ISREG(found.st_mode):
        _file(name, source, target, left, found)
    else:
        raise OSError(errno.EINVAL, f"it holds {name}, which cannot be copied")


def _describe(made: int, found: os.stat_result) -> None:
    """Set owner, mode and times of an open file: once it belongs to its owner, its name may lead elsewhere."""
    os.fchown(made, found.st_uid, found.st_gid)
    os.fchmod(made, stat.S_IMODE(found.st_mode))
    os.utime(made, ns=(found.st_atime_ns, found.st_mtime_ns))


def _file(name: str, source: int, target: int, left: Left, found: os.stat_result) -> None:
    reading = regular_files.opened(name, source)  # by now this name may be something else
    try:
        writing = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=target)
        try:
            while data := os.read(reading, 1 << 16):
                left.take(len(data))
                while data:
                    data = data[os.write(writing, data):]
            _describe(writing, found)
        finally:
            os.close(writing)
    finally:
        os.close(reading)
