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
from collections.abc import Callable

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


def look_up(folder: str, limit: int, stays_out: Callable[[str], bool]) -> None:
    """Look up every file below `folder`, or the first `limit` of them, so that the kernel knows their names again.

    For the file system of cgroups, in which this takes little time and waits for nobody. `stays_out` says of a
    directory below whether it is not to be opened, as something that does wait may be mounted there.
    """
    for above, folders, files, descriptor in os.fwalk(folder):
        for name in files[:limit]:
            with contextlib.suppress(FileNotFoundError):  # a cgroup that has just been removed
                os.stat(name, dir_fd=descriptor, follow_symlinks=False)
        limit -= len(files)
        if limit <= 0:
            break
        folders[:] = [name for name in folders if not stays_out(f"{above}/{name}")]
