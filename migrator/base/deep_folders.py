# SPDX-License-Identifier: GPL-2.0-or-later
"""Nested directories of any depth and path length: a container's root and users can create such cgroups.

A path of PATH_MAX (4096) bytes or more cannot be opened (ENAMETOOLONG in open(2)), but what it leads to can be created,
and a process put into it, from a directory on the way. And before Python 3.12, os.walk recurses for each level, up to
the interpreter's limit of a thousand. The functions here have neither limit.

`at_restore` imports this module while a container is down.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_AT_ONCE = 4000  # bytes of a path; a name has at most 255
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def opener(path: str, flags: int) -> int:
    """As os.open, also for `open(path, opener=)`, whatever the length of `path`; raises OSError."""
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
    """The path of each directory from `top` down, before those in it, and the names of the files in it.

    `unseen` is called with one that cannot be read, such as one that is just being removed.
    """
    for way, files, _ in descend(top, unseen):
        yield _path(top, way), files


def _enter(folder: int, name: str) -> int:
    return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)


def descend(top: str, unseen: Callable[[str], object] = lambda _: None,
            enter: Callable[[int, str], int] = _enter) -> Iterator[tuple[list[str], list[str], int]]:
    """As `walk`: the names on the way from `top`, those of the files, and a descriptor, valid until the next one.

    Each is opened from its parent and left through its `..`. Looking up each one's path would take time quadratic in
    the depth; keeping all on the way open, a descriptor for each. And a cgroup cannot be moved (cgroup_kf_syscall_ops
    in the kernel's cgroup.c has no rename). Raises OSError if one cannot be left, because there is no free descriptor.
    `enter` opens one in another, or raises OSError; by the name `..`, the one above, on which something may be mounted.
    """
    way: list[str] = []
    pending: list[list[str]] = []  # in each directory on the way, last one first
    try:
        fd = opener(top, _FOLDER)
    except OSError:
        unseen(top)
        return
    try:
        while True:
            folders: list[str] = []
            try:
                folders, files = _names(fd)
            except OSError:
                unseen(_path(top, way))
            else:
                yield way, files, fd
            pending.append(folders[::-1])
            below = -1
            while below < 0:
                if pending[-1]:
                    way.append(pending[-1].pop())
                    try:
                        below = enter(fd, way[-1])
                    except OSError:
                        unseen(_path(top, way))
                        way.pop()
                else:
                    pending.pop()
                    if not pending:
                        return
                    way.pop()
                    left, fd = fd, enter(fd, "..")
                    os.close(left)
            left, fd = fd, below
            os.close(left)
    finally:
        os.close(fd)


def _path(top: str, way: list[str]) -> str:
    return "/".join((top, *way))


def _names(fd: int) -> tuple[list[str], list[str]]:
    """The directories in an open directory, and the files."""
    found: tuple[list[str], list[str]] = [], []
    with os.scandir(fd) as entries:
        for entry in entries:
            found[0 if entry.is_dir(follow_symlinks=False) else 1].append(entry.name)
    return found


def rmdir(path: str) -> None:
    """As os.rmdir; raises OSError."""
    folder, _, name = path.rpartition("/")
    fd = opener(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        os.rmdir(name, dir_fd=fd)
    finally:
        os.close(fd)
