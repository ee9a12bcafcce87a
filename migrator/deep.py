# SPDX-License-Identifier: GPL-2.0-or-later
"""Folders in folders, however deep, and however long their path is: a container's root and users make cgroups so.

A path of PATH_MAX (4096) bytes or more cannot be opened (ENAMETOOLONG in open(2)), but what it leads to can be made,
and a process put into it, from a folder on the way. And os.walk calls itself for each level before Python 3.12, up to
the interpreter's limit of a thousand. Nothing here does either.

`at_restore` imports it while a container stands still.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_AT_ONCE = 4000  # bytes of a path; a name has 255 at most


def opener(path: str, flags: int) -> int:
    """As os.open, for `open(path, opener=)` too, whatever the length of `path` is; raises OSError."""
    rest, fd = os.fsencode(path), -1
    try:
        while len(rest) > _AT_ONCE and (cut := rest.rfind(b"/", 1, _AT_ONCE)) > 0:
            below = _open(rest[:cut], os.O_PATH | os.O_DIRECTORY, fd)
            if fd >= 0:
                os.close(fd)
            rest, fd = rest[cut:].lstrip(b"/"), below
        return _open(rest, flags, fd)
    finally:
        if fd >= 0:
            os.close(fd)


def _open(path: bytes, flags: int, fd: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, dir_fd=fd if fd >= 0 else None)


def walk(top: str, unseen: Callable[[str], object] = lambda _: None) -> Iterator[tuple[str, list[str]]]:
    """The path of each folder from `top` down, before those in it, and the names of the files in it.

    `unseen` hears of one that cannot be read, such as one that is just being removed.
    """
    pending = [top]
    while pending:
        folder = pending.pop()
        try:
            folders, files = _names(folder)
        except OSError:
            unseen(folder)
            continue
        yield folder, files
        pending += [f"{folder}/{name}" for name in reversed(folders)]


def _names(folder: str) -> tuple[list[str], list[str]]:
    found: tuple[list[str], list[str]] = [], []
    fd = opener(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                found[0 if entry.is_dir(follow_symlinks=False) else 1].append(entry.name)
    finally:
        os.close(fd)
    return found


def rmdir(path: str) -> None:
    """As os.rmdir; raises OSError."""
    folder, _, name = path.rpartition("/")
    fd = opener(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        os.rmdir(name, dir_fd=fd)
    finally:
        os.close(fd)
