# SPDX-License-Identifier: GPL-2.0-or-later
"""Open a folder by a path in a container, as its processes know it, without following any link there."""

from __future__ import annotations

import ctypes
import os
import struct

from migrator.base import libc

_OPENAT2 = 437  # kernel 5.6: the same number on all architectures but Alpha
_NO_SYMLINKS, _IN_ROOT = 0x4, 0x10  # RESOLVE_NO_SYMLINKS, RESOLVE_IN_ROOT
_HOW = struct.Struct("=QQQ")  # struct open_how


def folder(pid: int, path: str) -> int:
    """Of the root of process `pid`. Raises OSError, as where there is a link in its place or on the way."""
    root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        how = _HOW.pack(os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, 0, _NO_SYMLINKS | _IN_ROOT)
        return libc.must(int(libc.library().syscall(ctypes.c_long(_OPENAT2), root, os.fsencode(path), how,
                                                    ctypes.c_size_t(_HOW.size))), path)
    finally:
        os.close(root)
