# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a process has its root and what it has open, without asking a file system that may never answer.

A process can live on a mount of NFS, SMB or FUSE whose server is gone, or have files on it open. stat(2) on these waits
for that server without a limit, and so does whoever asks, even to give a container back. What the kernel has in memory
is enough for us.

statx(2) with AT_STATX_DONT_SYNC returns "whatever the system has cached": NFS, FUSE, SMB, Ceph and AFS then leave their
server alone (nfs_getattr in fs/nfs/inode.c, fuse_update_get_attr in fs/fuse/dir.c); what is on a disk of this host has
no server. 9p, which virtual machines use, ignores the flag. name_to_handle_at(2) assembles the handle from the inode in
memory (encode_fh in the kernel's filesystems/nfs/exporting.rst), except for an overlay with nfs_export=on, which root
in a privileged container can make: so for many processes it is asked by `forked`. The path does not ask a server
either: it ends at /proc/PID/root or /proc/PID/fd/N and looks nothing up in there, as a trailing /. would, which also
requires permission. open(2) with O_PATH only walks that path and opens nothing at its end (do_dentry_open in
fs/open.c).

A process may change its root between two looks, as any user can in namespaces of their own: from a directory on btrfs
to one that never answers. What was learned of the first does not hold for the second, so btrfs is only asked about what
`on_btrfs` holds.
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

from migrator.base.libc import library, must

PROC = Path("/proc")
_AT_FDCWD = -100
_FLAGS = 0x800 | 0x4000  # AT_NO_AUTOMOUNT, AT_STATX_DONT_SYNC
_STATX_TYPE, _STATX_NLINK, _STATX_INO, _STATX_MNT_ID = 0x1, 0x4, 0x100, 0x1000
_STATX_SIZE = 256
_FOLLOW = 0x400  # AT_SYMLINK_FOLLOW
_HANDLE_MAX = 128  # MAX_HANDLE_SZ
_PIDFD_GETFD = 438  # pidfd_getfd(2), kernel 5.6: the same number on all architectures but Alpha
_BTRFS_TOP = 256  # BTRFS_FIRST_FREE_OBJECTID in <linux/btrfs_tree.h>
_BTRFS_HANDLE = 0x4D  # FILEID_BTRFS_WITHOUT_PARENT in <linux/exportfs.h>


class Root(NamedTuple):
    """What identifies a directory, as in os.stat_result."""

    device: int
    inode: int


class Opened(NamedTuple):
    """An open file, as in os.stat_result."""

    mode: int
    links: int
    size: int  # bytes on disk
    device: int
    special: int  # a device number


def of(pid: int, proc: Path = PROC) -> Root:
    """The root of a process; raises OSError if it has ended."""
    return at(proc / str(pid) / "root")


def at(path: Path) -> Root:
    """As `of`, for a directory, as far as the kernel knows without asking a server; raises OSError."""
    return _root(_statx(path, _STATX_INO))


def opened(path: str) -> Opened:
    """What /proc/PID/fd/N leads to; raises OSError, also if the kernel does not know what type of file it is.

    The size of what is on a disk of this host is given without asking; SMB, if asked, would wait until everything has
    been written (cifs_getattr in fs/smb/client/inode.c).
    """
    found = _statx(path, _STATX_TYPE | _STATX_NLINK)
    said, links, mode, blocks = struct.unpack_from("=I12xI8xH18xQ", found)  # stx_mask, stx_nlink, stx_mode, stx_blocks
    if not said & _STATX_TYPE:
        raise OSError(errno.ENODATA, os.strerror(errno.ENODATA), path)
    special = os.makedev(*struct.unpack_from("=II", found, 128))  # stx_rdev_major, stx_rdev_minor
    return Opened(mode, links, blocks * 512, _root(found).device, special)


def take(process: int, number: int) -> int:
    """A descriptor of our own for what another process, given by its pidfd, has open as `number`; raises OSError."""
    return must(int(libc().syscall(ctypes.c_long(_PIDFD_GETFD), process, number, 0)), "pidfd_getfd")


def borrowed(pid: int, number: int) -> int:
    """As `take`, of a process given by its id."""
    process = os.pidfd_open(pid)
    try:
        return take(process, number)
    finally:
        os.close(process)


def is_in(pid: int, folder: Path, proc: Path = PROC) -> bool:
    """Whether a process has this directory as its root or, if that is a subvolume, any directory in it; raises OSError.

    The latter is so after a chroot(2) of its own. Each subvolume has its own device number (btrfs_getattr in
    fs/btrfs/inode.c), and all have the same inode number at their top.
    """
    root, top = of(pid, proc), at(folder)
    return root == top or (root.device == top.device and top.inode == _BTRFS_TOP and is_on_btrfs(pid, proc))


def is_subvolume(pid: int, proc: Path = PROC) -> bool:
    """Whether the root of a process is the top of some subvolume; raises OSError."""
    return of(pid, proc).inode == _BTRFS_TOP and is_on_btrfs(pid, proc)


def is_elsewhere(pid: int, folder: Path) -> bool:
    """Whether a container's PID 1 has a root other than this directory.

    Something may have taken that directory's place; or the root is a directory in it, as after a pivot_root(2) of its
    own, while CRIU restores it with the whole as its root. False for a process that has ended, or if there is no such
    directory.
    """
    with contextlib.suppress(OSError):
        return of(pid) != at(folder)
    return False


def mounted(pid: int) -> tuple[Root, int | None]:
    """The root of a process and the id of the mount that it is in, None from a kernel before 5.8; raises OSError."""
    return placed(PROC / str(pid) / "root")


def placed(path: Path) -> tuple[Root, int | None]:
    """As `mounted`, for what a path leads to."""
    found = _statx(path, _STATX_INO | _STATX_MNT_ID)
    (said,) = struct.unpack_from("=I", found)  # stx_mask
    return _root(found), struct.unpack_from("=Q", found, 144)[0] if said & _STATX_MNT_ID else None  # stx_mnt_id


def is_top_of_own_mount(pid: int) -> bool:
    """Whether its root is the top of a mount, and of one in its own mount namespace; raises OSError.

    /proc/PID/mountinfo lists exactly what is mounted at or below that root (show_mountinfo in fs/proc_namespace.c). So
    the root's own mount is missing after a chroot(2) into a directory of it, and if a process got its root through a
    descriptor from elsewhere. A kernel before 5.8 does not tell.
    """
    _, mount = mounted(pid)
    if mount is None:
        return True
    with (PROC / str(pid) / "mountinfo").open("rb") as lines:
        return any(line.startswith(b"%d " % mount) for line in lines)


def _statx(path: Path | str, mask: int) -> ctypes.Array[ctypes.c_char]:
    found = ctypes.create_string_buffer(_STATX_SIZE)
    must(libc().statx(_AT_FDCWD, os.fsencode(path), _FLAGS, mask, found), str(path))
    return found


def _root(found: ctypes.Array[ctypes.c_char]) -> Root:
    (inode,) = struct.unpack_from("=Q", found, 32)  # stx_ino
    return Root(os.makedev(*struct.unpack_from("=II", found, 136)), inode)  # stx_dev_major, stx_dev_minor


def is_on_btrfs(pid: int, proc: Path = PROC) -> bool:
    """Whether the root of a process is on btrfs, so that asking there waits for no server; raises OSError."""
    return _lies_on_btrfs(proc / str(pid) / "root")


@contextlib.contextmanager
def on_btrfs(pid: int) -> Iterator[Path | None]:
    """The root of a process, held as it is now whatever the process does, to ask btrfs about.

    None if it is not on btrfs. Raises OSError.
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
        must(libc().name_to_handle_at(_AT_FDCWD, os.fsencode(path), handle, ctypes.byref(mount), _FOLLOW), str(path))
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:  # an overlay, for example, has no handles; btrfs does
            return False
        raise
    return bool(struct.unpack_from("=Ii", handle)[1] == _BTRFS_HANDLE)


@functools.cache  # all of /proc is looked at while a container is frozen
def libc() -> ctypes.CDLL:
    return library()
