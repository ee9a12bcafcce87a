# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a file lies on btrfs, or in the cgroup file system, by the number of its inode.

The kernel drops the names of files that nobody has looked up for a while when it is short of memory (dentries; `echo 2
>/proc/sys/vm/drop_caches` does the same), even while something watches these files. Whoever then opens one by its
handle, as CRIU does, is not told its path: /proc/self/fd has "/" for it (d_obtain_alias in the kernel's fs/dcache.c).
Once it has been looked up by its path, it is told again.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import struct

from migrator.base import deep_folders
from migrator.host import inner_paths

_INO_PATHS = 0xC0389423  # BTRFS_IOC_INO_PATHS in <linux/btrfs.h>
_ARGUMENTS = struct.Struct("=7Q")  # struct btrfs_ioctl_ino_path_args: inum, size, four reserved, fspath
_SIZE = 4096  # bytes of the answer, which is the kernel's limit
_COUNT, _OFFSETS = 8, 16  # where struct btrfs_data_container has elem_cnt and val


def paths(folder: int, inode: int) -> list[str]:
    """Paths of a file from the top of the subvolume in which the open directory `folder` lies.

    None if there is no such file, or if that is not on btrfs. It takes CAP_DAC_READ_SEARCH.
    """
    found = ctypes.create_string_buffer(_SIZE)
    try:
        fcntl.ioctl(folder, _INO_PATHS, _ARGUMENTS.pack(inode, _SIZE, 0, 0, 0, 0, ctypes.addressof(found)))
    except OSError:
        return []
    (count,) = struct.unpack_from("=I", found, _COUNT)
    offsets = struct.unpack_from(f"={count}Q", found, _OFFSETS)
    return [os.fsdecode(found.raw[_OFFSETS + offset:].partition(b"\0")[0]) for offset in offsets]


def look_up(folder: int, limit: int) -> None:
    """Look up every file below an open directory, so that the kernel knows their names again.

    For the file system of cgroups, in which this takes little time and waits for nobody. What is mounted somewhere in
    it is left out: that may wait, and may have any number of directories. Of these and of files, some `limit` are
    looked at. Raises OSError if something is mounted over a directory while that is looked through.
    """
    for _, files, below in deep_folders.descend(f"/proc/self/fd/{folder}", enter=inner_paths.folder_of_mount):
        for name in files[:limit]:
            with contextlib.suppress(OSError):  # a cgroup that has just been removed, or a mount
                inner_paths.look_up(below, name)
        limit -= len(files) + 1
        if limit <= 0:
            break
