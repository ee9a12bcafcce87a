# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a process has its root, and what it has open, told without asking a file system that may never answer.

A process can live on a mount of NFS, SMB or FUSE whose server is gone, or have files of it open. stat(2) of these waits
for that server without a limit, and with it whoever asks, be it to give a container back. What the kernel has in memory
is enough.

statx(2) with AT_STATX_DONT_SYNC takes "whatever the system has cached": NFS, FUSE, SMB, Ceph and AFS leave their
server alone then (nfs_getattr in fs/nfs/inode.c, fuse_update_get_attr in fs/fuse/dir.c); what lies on a disk of this
host has none. 9p, which virtual machines use, does not know the flag. name_to_handle_at(2) puts together what the inode
in memory has (encode_fh in the kernel's filesystems/nfs/exporting.rst), but for an overlay with nfs_export=on, as root
in a privileged container can make one: so that is asked of many processes by `forked`. The way there does not ask
either: it ends at /proc/PID/root or /proc/PID/fd/N, and looks nothing up in there, as a trailing /. would, and ask for
the permission to. open(2) with O_PATH goes that way alone, and opens nothing at its end (do_dentry_open in fs/open.c).

A process may change its root between two looks, as any user can in namespaces of his own: from a folder on btrfs to one
that never answers. What was told of the first does not hold for the second, so btrfs is asked of what `on_btrfs` holds.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
_AT_FDCWD = -100
_FLAGS = 0x800 | 0x4000  # AT_NO_AUTOMOUNT, AT_STATX_DONT_SYNC
_STATX_TYPE, _STATX_NLINK, _STATX_INO, _STATX_MNT_ID = 0x1, 0x4, 0x100, 0x1000
_STATX_SIZE = 256
_FOLLOW = 0x400  # AT_SYMLINK_FOLLOW
_HANDLE_MAX = 128  # MAX_HANDLE_SZ
_PIDFD_GETFD = 438  # pidfd_getfd(2), kernel 5.6: the same number on all machines but Alpha
_BTRFS_TOP = 256  # BTRFS_FIRST_FREE_OBJECTID in <linux/btrfs_tree.h>
_BTRFS_HANDLE = 0x4D  # FILEID_BTRFS_WITHOUT_PARENT in <linux/exportfs.h>


class Root(NamedTuple):
    """What tells a folder from all others, as in os.stat_result."""

    device: int
    inode: int


class Opened(NamedTuple):
    """An open file, as in os.stat_result."""

    mode: int
    links: int
    size: int  # bytes, on disk
    device: int
    special: int  # the number of a device


def of(pid: int, proc: Path = PROC) -> Root:
    """The root of a process; raises OSError where it has ended."""
    return at(proc / str(pid) / "root")


def at(path: Path) -> Root:
    """The same of a folder, as far as the kernel knows it without asking; raises OSError."""
    return _root(_statx(path, _STATX_INO))


def opened(path: str) -> Opened:
    """What /proc/PID/fd/N leads to; raises OSError, too where the kernel does not know what kind of file it is.

    What lies on a disk of this host has its size told unasked; SMB, if asked, would wait until all has been written
    (cifs_getattr in fs/smb/client/inode.c).
    """
    found = _statx(path, _STATX_TYPE | _STATX_NLINK)
    said, links, mode, blocks = struct.unpack_from("=I12xI8xH18xQ", found)  # stx_mask, stx_nlink, stx_mode, stx_blocks
    if not said & _STATX_TYPE:
        raise OSError(errno.ENODATA, os.strerror(errno.ENODATA), path)
    special = os.makedev(*struct.unpack_from("=II", found, 128))  # stx_rdev_major, stx_rdev_minor
    return Opened(mode, links, blocks * 512, _root(found).device, special)


def take(process: int, number: int) -> int:
    """A descriptor of our own of what another process, by its pidfd, has open by that number; raises OSError."""
    fd: int = libc().syscall(ctypes.c_long(_PIDFD_GETFD), process, number, 0)
    if fd < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "pidfd_getfd")
    return fd


def is_in(pid: int, folder: Path, proc: Path = PROC) -> bool:
    """Whether a process has this folder as its root or, where that is a subvolume, any folder in it; raises OSError.

    As after a chroot(2) of its own. Each subvolume has a device number of its own (btrfs_getattr in fs/btrfs/inode.c),
    and all have one inode number at their top.
    """
    root, top = of(pid, proc), at(folder)
    return root == top or (root.device == top.device and top.inode == _BTRFS_TOP and is_on_btrfs(pid, proc))


def is_subvolume(pid: int, proc: Path = PROC) -> bool:
    """Whether a process has the top of some subvolume as its root; raises OSError."""
    return of(pid, proc).inode == _BTRFS_TOP and is_on_btrfs(pid, proc)


def is_elsewhere(pid: int, folder: Path) -> bool:
    """Whether a container's first process has another root than this folder: one that something has taken the place of,
    or a folder in it, as after a pivot_root(2) of its own, while CRIU restores it with the whole as its root.

    Not of a process that has ended, nor where there is no such folder.
    """
    with contextlib.suppress(OSError):
        return of(pid) != at(folder)
    return False


def mounted(pid: int) -> tuple[Root, int | None]:
    """The root of a process and the id of the mount that it is in, None from a kernel before 5.8; raises OSError."""
    return placed(PROC / str(pid) / "root")


def placed(path: Path) -> tuple[Root, int | None]:
    """The same of what a path leads to."""
    found = _statx(path, _STATX_INO | _STATX_MNT_ID)
    (said,) = struct.unpack_from("=I", found)  # stx_mask
    return _root(found), struct.unpack_from("=Q", found, 144)[0] if said & _STATX_MNT_ID else None  # stx_mnt_id


def is_top_of_own_mount(pid: int) -> bool:
    """Whether its root is the top of a mount, and of one in its own mount namespace; raises OSError.

    /proc/PID/mountinfo has just what is mounted at or below that root (show_mountinfo in fs/proc_namespace.c). So the
    mount of the root itself is missing after a chroot(2) into a folder of it, and where a process has come to its root
    by a descriptor from elsewhere. A kernel before 5.8 does not tell.
    """
    _, mount = mounted(pid)
    if mount is None:
        return True
    with (PROC / str(pid) / "mountinfo").open("rb") as lines:
        return any(line.startswith(b"%d " % mount) for line in lines)


def _statx(path: Path | str, mask: int) -> ctypes.Array[ctypes.c_char]:
    found = ctypes.create_string_buffer(_STATX_SIZE)
    _must(libc().statx(_AT_FDCWD, os.fsencode(path), _FLAGS, mask, found), path)
    return found


def _root(found: ctypes.Array[ctypes.c_char]) -> Root:
    (inode,) = struct.unpack_from("=Q", found, 32)  # stx_ino
    return Root(os.makedev(*struct.unpack_from("=II", found, 136)), inode)  # stx_dev_major, stx_dev_minor


def is_on_btrfs(pid: int, proc: Path = PROC) -> bool:
    """Whether the root of a process lies on btrfs, so that to ask there waits for no server; raises OSError."""
    return _lies_on_btrfs(proc / str(pid) / "root")


@contextlib.contextmanager
def on_btrfs(pid: int) -> Iterator[Path | None]:
    """The root of a process, held as it is now whatever the process does, to be asked for what btrfs tells.

    None where it does not lie on btrfs. Raises OSError.
    """
    fd = os.open(PROC / str(pid) / "root", os.O_PATH | os.O_CLOEXEC)
    try:
        held = Path(f"/proc/self/fd/{fd}")
        yield held if _lies_on_btrfs(held) else None
    finally:
        os.close(fd)


def _lies_on_btrfs(path: Path) -> bool:
    handle = ctypes.create_string_buffer(struct.pack("=Ii", _HANDLE_MAX, 0), 8 + _HANDLE_MAX)
    mount = ctypes.c_int()
    try:
        _must(libc().name_to_handle_at(_AT_FDCWD, os.fsencode(path), handle, ctypes.byref(mount), _FOLLOW), path)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:  # as an overlay, which has no handles; btrfs has
            return False
        raise
    return bool(struct.unpack_from("=Ii", handle)[1] == _BTRFS_HANDLE)


def _must(result: int, path: Path | str) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))


@functools.cache  # all of /proc is looked at while a container stands still
def libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
