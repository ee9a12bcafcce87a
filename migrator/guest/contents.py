# SPDX-License-Identifier: GPL-2.0-or-later
"""Copy what a small folder holds into an empty one: files, folders and links, with owners, modes and times."""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from migrator.guest import regular_files

ENTRIES_MAX = 1000
BYTES_MAX = 16 << 20
DEPTH_MAX = 16
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Left:
    """What may still be copied."""

    def __init__(self) -> None:
        self.entries, self.bytes = ENTRIES_MAX, BYTES_MAX

    def take(self, size: int) -> None:
        self.entries, self.bytes = self.entries - 1, self.bytes - size
        if self.entries < 0 or self.bytes < 0:
            raise OSError(errno.EFBIG, "it holds too much to be copied")


def copy(source: int, target: int, left: Left, depth: int = 0) -> None:
    """Of one open folder into another; raises OSError, as where there is something that is no file, folder or link.

    Whose files they are may already delete them in the other one, or put links in their place.
    """
    if depth > DEPTH_MAX:
        raise OSError(errno.EFBIG, "it holds folders too deep to be copied")
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
    """Of what is open, as its name may lead to something else as soon as it is theirs."""
    os.fchown(made, found.st_uid, found.st_gid)
    os.fchmod(made, stat.S_IMODE(found.st_mode))
    os.utime(made, ns=(found.st_atime_ns, found.st_mtime_ns))


def _file(name: str, source: int, target: int, left: Left, found: os.stat_result) -> None:
    reading = regular_files.opened(name, source)  # it may be something else by now
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
