# SPDX-License-Identifier: GPL-2.0-or-later
"""For a program that opens no device, whatever it finds: `btrfs receive` makes and writes what another host says.

Its stream may have it make a node of this host's disk and write to that, which it would, as root (process_mknod and
process_write in btrfs-progs' cmds/receive.c). That it is in a chroot does not keep it from that, nor could a look at
the stream, as the node may have come with an earlier one, and been given another name since. Nodes are made all the
same, as many a container has some.
"""

from __future__ import annotations

import os
import struct

_CLONE_NEWNS = 0x20000
_MS_SLAVE = 1 << 19
_MOUNT_ATTR_NODEV = 4
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_MOUNT_ATTR = struct.Struct("=QQQQ")  # attributes to be set, to be cleared; propagation; a user namespace


def enter() -> None:
    """Give the calling thread, and what it starts, a mount namespace of its own that no device is opened in.

    To be called as run.started's `within`, with a `stdin`: a thread does not come back, and /dev/null is a device too.
    All mounts are as they are here but for `nodev` (mount_setattr(2)), and what is unmounted here, where it is shared,
    is unmounted there. Raises OSError.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)

    def must(status: int, what: str) -> None:
        if status != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), what)

    must(libc.unshare(_CLONE_NEWNS), "a mount namespace")
    wanted = _MOUNT_ATTR.pack(_MOUNT_ATTR_NODEV, 0, _MS_SLAVE, 0)
    must(libc.mount_setattr(_AT_FDCWD, b"/", _AT_RECURSIVE, wanted, ctypes.c_size_t(len(wanted))), "/")
