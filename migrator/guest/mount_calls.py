# SPDX-License-Identifier: GPL-2.0-or-later
"""The newer mount system calls, which Python does not wrap: a mount is set up completely before it is attached.

All of them raise OSError.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
from collections.abc import Collection, Iterator

from migrator.base import libc

# System call numbers, the same on all architectures but Alpha; the newest of these calls came with kernel 5.12.
_OPEN_TREE, _MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT, _MOUNT_SETATTR = 428, 429, 430, 431, 432, 442
_AT_FDCWD, _AT_NOFOLLOW, _AT_EMPTY_PATH = -100, 0x100, 0x1000
_CLONE = 0x1  # OPEN_TREE_CLONE
_SET_STRING, _CREATE = 1, 6  # FSCONFIG_SET_STRING, FSCONFIG_CMD_CREATE
_FROM_DESCRIPTOR = 0x4  # MOVE_MOUNT_F_EMPTY_PATH
_BENEATH = 0x200  # MOVE_MOUNT_BENEATH, kernel 6.5
_EXPIRE, _NOFOLLOW = 4, 8  # MNT_EXPIRE, UMOUNT_NOFOLLOW
# The restrictions that mountinfo lists among the options, as attributes of mount_setattr(2).
_FORBID = {"ro": 0x1, "nosuid": 0x2, "nodev": 0x4, "noexec": 0x8, "nosymfollow": 0x200000}


def _call(number: int, what: str, *arguments: int | bytes | None) -> int:
    given = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    return libc.must(int(libc.library().syscall(ctypes.c_long(number), *given)), what)


@contextlib.contextmanager
def new_tmpfs(options: dict[str, str]) -> Iterator[int]:
    """A new tmpfs with these options that is not attached anywhere yet, as a file descriptor."""
    fs = _call(_FSOPEN, "a new tmpfs", b"tmpfs", 1)
    try:
        for key, value in options.items():
            _call(_FSCONFIG, f"{key}={value}", fs, _SET_STRING, key.encode(), value.encode(), 0)
        _call(_FSCONFIG, "a new tmpfs", fs, _CREATE, None, None, 0)
        mount = _call(_FSMOUNT, "a new tmpfs", fs, 1, 0)
    finally:
        os.close(fs)
    try:
        yield mount
    finally:
        os.close(mount)


@contextlib.contextmanager
def second(target: str) -> Iterator[int]:
    """A second, detached mount of what is mounted at `target`, as a file descriptor.

    It keeps the file system alive when the first one is unmounted.
    """
    mount = _call(_OPEN_TREE, target, _AT_FDCWD, os.fsencode(target), _CLONE | _AT_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield mount
    finally:
        os.close(mount)


def forbid(mount: int, options: Collection[str]) -> None:
    """Restrict a mount as another one is restricted that has these options."""
    flags = sum(flag for option, flag in _FORBID.items() if option in options)
    attributes = struct.pack("=QQQQ", flags, 0, 0, 0)
    _call(_MOUNT_SETATTR, "a new mount", mount, b"", _AT_EMPTY_PATH, attributes, len(attributes))


def attach(mount: int, target: str) -> None:
    """Mount a detached mount at `target`, over what is mounted there."""
    _call(_MOVE_MOUNT, target, mount, b"", _AT_FDCWD, os.fsencode(target), _FROM_DESCRIPTOR)


def attach_beneath(mount: int, target: str) -> bool:
    """Mount a detached mount beneath what is mounted at `target`, so that it appears when that is unmounted.

    Returns False if the kernel cannot do that (before 6.5, for example).
    """
    try:
        _call(_MOVE_MOUNT, target, mount, b"", _AT_FDCWD, os.fsencode(target), _FROM_DESCRIPTOR | _BENEATH)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True


def require_unused(target: str) -> None:
    """Raise OSError (EBUSY) if anything in what is mounted at `target` is in use."""
    with contextlib.suppress(BlockingIOError):  # EAGAIN: unused; it is now marked as expired, until the next access
        libc.must(libc.library().umount2(os.fsencode(target), _EXPIRE | _NOFOLLOW), target)


def detach(target: str) -> None:
    """Unmount what is mounted at `target`; raises OSError, with EBUSY if anything in it is in use."""
    libc.must(libc.library().umount2(os.fsencode(target), _NOFOLLOW), target)
