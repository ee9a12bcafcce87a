# SPDX-License-Identifier: GPL-2.0-or-later
"""For a program that must not open any device: `btrfs receive` creates and writes what another host says.

A stream could make it create a node for this host's disk and write to that, which it would do, as root (process_mknod
and process_write in btrfs-progs' cmds/receive.c). Its chroot does not prevent that, and inspecting the stream would not
either, because the node may have come with an earlier one and been renamed since. Nodes are created all the same, as
many containers have some.
"""

from __future__ import annotations

import struct

_CLONE_NEWNS = 0x20000
_MS_SLAVE = 1 << 19
_MOUNT_ATTR_NODEV = 4
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_MOUNT_ATTR = struct.Struct("=QQQQ")  # attributes to set, to clear; propagation; a user namespace


def enter() -> None:
    """Give the calling thread, and what it starts, a mount namespace of its own in which no device can be opened.

    To be called as run.started's `within`, with a `stdin`: a thread cannot go back, and /dev/null is a device too. All
    mounts are the same as here except for `nodev` (mount_setattr(2)), and what is unmounted here, if it is shared, is
    unmounted there as well. Raises OSError.
    """
    import ctypes

    from migrator.base import libc

    library = libc.library()
    libc.must(library.unshare(_CLONE_NEWNS), "a mount namespace")
    wanted = _MOUNT_ATTR.pack(_MOUNT_ATTR_NODEV, 0, _MS_SLAVE, 0)
    libc.must(library.mount_setattr(_AT_FDCWD, b"/", _AT_RECURSIVE, wanted, ctypes.c_size_t(len(wanted))), "/")
