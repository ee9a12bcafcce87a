# SPDX-License-Identifier: GPL-2.0-or-later
"""Which files a process watches with inotify or fanotify, found the way that CRIU finds them.

/proc/PID/fdinfo/FD gives a watch's inode as a file handle (proc_pid_fdinfo(5)). CRIU opens the handle on a mount of the
same file system, reads the path back and opens that path: this fails for a symlink (it opens the link's target, which
is another inode), and for a file that has been deleted (check_open_handle in criu/fsnotify.c).

File servers are not asked, because they may never answer: what is on one stays unknown, and so does what a path through
its mount leads to.
"""

# Plain strings: creating a Path for each of ten thousand reads of /proc would double their cost.
# ruff: noqa: PTH115, PTH123

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
import struct
from collections.abc import Iterator

from migrator.host import inner_paths, inode_paths
from migrator.preflight.facts.mounts_seen import Mounted

O_PATH = os.O_PATH
HANDLE_MAX = 128  # bytes, MAX_HANDLE_SZ
MOUNTS_MAX = 64  # of one file system on which a file is looked for
_BTRFS_HANDLE = 0x4D  # FILEID_BTRFS_WITHOUT_PARENT in <linux/exportfs.h>
_BTRFS_FID = struct.Struct("=QQI")  # struct btrfs_fid in the kernel's fs/btrfs/export.h: inode, subvolume, generation
_BTRFS_TOP, _ANY = 256, 0  # BTRFS_FIRST_FREE_OBJECTID; the generation that newer kernels do not compare
LOOKED_UP_MAX = 100_000  # files of cgroups, of which a systemd guest has some thousand


def fdinfo(fd_path: str, key: str) -> str:
    """A value from the descriptor's fdinfo; "" if it is not there."""
    for line in fdinfo_lines(fd_path):
        name, _, value = line.partition(":")
        if name == key:
            return value.strip()
    return ""


def fdinfo_lines(fd_path: str) -> Iterator[str]:
    """The lines of fdinfo for a path such as /proc/1/fd/3, one by one: a process can have any number of locks, watches.
    """
    with contextlib.suppress(OSError), open(fd_path.replace("/fd/", "/fdinfo/"), "rb") as file:
        for line in file:
            yield line.decode(errors="replace")


def parse_watch(line: str) -> tuple[str, int, int, bytes] | None:
    """(device, inode, handle type, handle) of an `inotify wd:...` or `fanotify ino:...` line, else None."""
    words = line.split()
    if not words or words[0] not in ("inotify", "fanotify"):
        return None
    told = dict(word.split(":", 1) for word in words[1:] if ":" in word)
    try:
        device = int(told["sdev"], 16)
        # The kernel's own encoding of a device number: 20 bits of minor (MKDEV in linux/kdev_t.h).
        shown = f"{device >> 20}:{device & 0xFFFFF}"
        return shown, int(told["ino"], 16), int(told["fhandle-type"], 16), bytes.fromhex(told["f_handle"])
    except (KeyError, ValueError):
        return None


def watches(fd_path: str, pid: int, mounted: Mounted) -> Iterator[tuple[str, str]]:
    """(kind, path) of each watch; kind is "file", "symlink", "deleted", "hidden" (by a mount over it) or "unknown".

    A container may have a file system mounted 100,000 times, and watch as many files: so one that is `hidden` on some
    of its mounts is not looked for on all.
    """
    for line in fdinfo_lines(fd_path):
        watch = parse_watch(line)
        if watch:
            device, inode, handle_type, handle = watch
            found = None
            for target in mounted.targets(device)[:MOUNTS_MAX]:
                if not mounted.may_wait(target):
                    found = _resolve(pid, target, mounted, inode, handle_type, handle)
                    if found and found[0] == "file":
                        break
            yield found or ("unknown", f"inode {inode} of device {device}")


class _Handle(ctypes.Structure):
    _fields_ = (("size", ctypes.c_uint), ("type", ctypes.c_int), ("bytes", ctypes.c_ubyte * HANDLE_MAX))


def _open_by_handle(mount: int, handle_type: int, handle: bytes) -> int:
    """open_by_handle_at(2), which Python's os module lacks; raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    structure = _Handle(len(handle), handle_type, (ctypes.c_ubyte * HANDLE_MAX)(*handle[:HANDLE_MAX]))
    fd = int(libc.open_by_handle_at(mount, ctypes.byref(structure), O_PATH | os.O_CLOEXEC))
    if fd < 0:
        raise OSError(ctypes.get_errno(), "open_by_handle_at")
    return fd


def _by_handle(mount: int, handle_type: int, handle: bytes) -> tuple[str, os.stat_result]:
    """The path of a file as seen from the root of its mount, and what stat(2) says; raises OSError."""
    fd = _open_by_handle(mount, handle_type, handle)
    try:
        return os.readlink(f"/proc/self/fd/{fd}"), os.fstat(fd)
    finally:
        os.close(fd)


def _top(mount: int, handle_type: int, handle: bytes) -> int:
    """The top of the subvolume that a file lies in, which may be nested in that of its mount, as a descriptor.

    That of the mount itself if it is not on btrfs, or if the kernel opens a top only for who knows its generation.
    """
    if handle_type == _BTRFS_HANDLE and len(handle) >= _BTRFS_FID.size:
        _, subvolume, _ = _BTRFS_FID.unpack_from(handle)
        with contextlib.suppress(OSError):
            fd = _open_by_handle(mount, handle_type, _BTRFS_FID.pack(_BTRFS_TOP, subvolume, _ANY))
            try:
                return inner_paths.folder_of_mount(fd, ".")
            finally:
                os.close(fd)
    return os.dup(mount)


def _look_up(target: str, mounted: Mounted, inode: int, mount_fd: int, top: int) -> None:
    """Look up by its path a file whose name the kernel has dropped: on btrfs, or in the cgroup file system."""
    if target in mounted.cgroups:
        mounted.cgroups.discard(target)  # once is enough
        inode_paths.look_up(mount_fd, LOOKED_UP_MAX)
    its = os.fstat(top).st_dev, inode  # each subvolume has a device number of its own
    if its in mounted.looked_up:
        return
    mounted.looked_up.add(its)
    for name in inode_paths.paths(top, inode):
        with contextlib.suppress(OSError):  # it has another name by now, or a mount is over it
            inner_paths.look_up(top, name)


def _resolve(pid: int, target: str, mounted: Mounted, inode: int, handle_type: int,
             handle: bytes) -> tuple[str, str] | None:
    with contextlib.ExitStack() as stack:
        try:
            mount_fd = inner_paths.folder(pid, target)
            stack.callback(os.close, mount_fd)
            path, found = _by_handle(mount_fd, handle_type, handle)
            if path == "/" and not stat.S_ISDIR(found.st_mode):
                stack.callback(os.close, top := _top(mount_fd, handle_type, handle))
                _look_up(target, mounted, inode, mount_fd, top)
                path, found = _by_handle(mount_fd, handle_type, handle)
        except OSError:
            return None
        if stat.S_ISLNK(found.st_mode):
            return "symlink", path
        if found.st_nlink == 0 or path.endswith(" (deleted)"):
            return "deleted", path.removesuffix(" (deleted)")
        if mounted.may_wait(path):
            return None
        try:
            visible = inner_paths.inode(pid, path) == inode
        except OSError:
            visible = False
        return ("file" if visible else "hidden"), path
