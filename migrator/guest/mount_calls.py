# SPDX-License-Identifier: GPL-2.0-or-later
"""mount(2)'s younger sisters, which Python does not have: a mount is made whole, and only then attached."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
from collections.abc import Collection, Iterator

# The numbers are the same on all machines but Alpha; kernel 5.12 has all of them.
_OPEN_TREE, _MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT, _MOUNT_SETATTR = 428, 429, 430, 431, 432, 442
_AT_FDCWD, _AT_NOFOLLOW, _AT_EMPTY_PATH = -100, 0x100, 0x1000
_CLONE = 0x1  # OPEN_TREE_CLONE
_SET_STRING, _CREATE = 1, 6  # FSCONFIG_SET_STRING, FSCONFIG_CMD_CREATE
_FROM_DESCRIPTOR = 0x4  # MOVE_MOUNT_F_EMPTY_PATH
_BENEATH = 0x200  # MOVE_MOUNT_BENEATH, kernel 6.5
_EXPIRE, _NOFOLLOW = 4, 8  # MNT_EXPIRE, UMOUNT_NOFOLLOW
# The options in mountinfo that forbid something, as flags of mount_setattr(2).
_FORBID = {"ro": 0x1, "nosuid": 0x2, "nodev": 0x4, "noexec": 0x8, "nosymfollow": 0x200000}


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _must(status: int, what: str) -> int:
    if status < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), what)
    return status


def _call(number: int, what: str, *arguments: int | bytes | None) -> int:
    given = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    return _must(int(_libc().syscall(ctypes.c_long(number), *given)), what)


@contextlib.contextmanager
def new_tmpfs(options: dict[str, str]) -> Iterator[int]:
    """A tmpfs that is mounted nowhere yet."""
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
    """A mount of what is mounted there, which is mounted nowhere: it keeps that from going away with the other one."""
    mount = _call(_OPEN_TREE, target, _AT_FDCWD, os.fsencode(target), _CLONE | _AT_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield mount
    finally:
        os.close(mount)


def forbid(mount: int, options: Collection[str]) -> None:
    """It forbids what those options of another mount forbid."""
    flags = sum(flag for option, flag in _FORBID.items() if option in options)
    attributes = struct.pack("=QQQQ", flags, 0, 0, 0)
    _call(_MOUNT_SETATTR, "a new mount", mount, b"", _AT_EMPTY_PATH, attributes, len(attributes))


def attach(mount: int, target: str) -> None:
    _call(_MOVE_MOUNT, target, mount, b"", _AT_FDCWD, os.fsencode(target), _FROM_DESCRIPTOR)


def attach_beneath(mount: int, target: str) -> bool:
    """It comes to light when what is mounted there is unmounted; False where the kernel cannot do that."""
    try:
        _call(_MOVE_MOUNT, target, mount, b"", _AT_FDCWD, os.fsencode(target), _FROM_DESCRIPTOR | _BENEATH)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True


def require_unused(target: str) -> None:
    """Raises OSError, of EBUSY: something in what is mounted there is open."""
    with contextlib.suppress(BlockingIOError):  # EAGAIN: it only has a mark now, which goes with the next look at it
        _must(_libc().umount2(os.fsencode(target), _EXPIRE | _NOFOLLOW), target)


def detach(target: str) -> None:
    """Raises OSError, of EBUSY too: something in it is open."""
    _must(_libc().umount2(os.fsencode(target), _NOFOLLOW), target)
