# SPDX-License-Identifier: GPL-2.0-or-later
"""Open a file by a path in a container, as its processes know it, without following any link there."""

from __future__ import annotations

import ctypes
import os
import struct

from migrator.base import libc
from migrator.host import roots

_OPENAT2 = 437  # kernel 5.6: the same number on all architectures but Alpha
_NO_XDEV, _NO_SYMLINKS, _IN_ROOT = 0x1, 0x4, 0x10  # RESOLVE_NO_XDEV, RESOLVE_NO_SYMLINKS, RESOLVE_IN_ROOT
_HOW = struct.Struct("=QQQ")  # struct open_how
_FOLDER = os.O_RDONLY | os.O_DIRECTORY


def folder(pid: int, path: str) -> int:
    """Of the root of process `pid`. Raises OSError, as where there is a link in its place or on the way."""
    return _from_root(pid, path, _FOLDER)


def inode(pid: int, path: str) -> int:
    """The number of the file's inode, as far as the kernel knows without asking a server; raises OSError likewise."""
    fd = _from_root(pid, path, os.O_PATH)
    try:
        return roots.at(roots.PROC / f"self/fd/{fd}").inode
    finally:
        os.close(fd)


def folder_of_mount(above: int, path: str) -> int:
    """One below an open directory, or the one above (`..`); raises OSError also where another mount is in its place.

    Such a mount is not asked: its server may never answer. Nor is one that has just been mounted over the one above.
    """
    return _open(above, path, _FOLDER, _NO_SYMLINKS | _NO_XDEV)


def look_up(above: int, path: str) -> None:
    """Have the kernel look up the name of a file, and nothing else; raises OSError as `folder_of_mount`."""
    os.close(_open(above, path, os.O_PATH, _NO_SYMLINKS | _IN_ROOT | _NO_XDEV))


def _from_root(pid: int, path: str, flags: int) -> int:
    root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _open(root, path, flags, _NO_SYMLINKS | _IN_ROOT)
    finally:
        os.close(root)


def _open(above: int, path: str, flags: int, resolve: int) -> int:
    how = _HOW.pack(flags | os.O_CLOEXEC, 0, resolve)
    return libc.must(int(roots.libc().syscall(ctypes.c_long(_OPENAT2), above, os.fsencode(path), how,
                                              ctypes.c_size_t(_HOW.size))), path)
