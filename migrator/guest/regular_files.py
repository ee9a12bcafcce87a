# SPDX-License-Identifier: GPL-2.0-or-later
"""Open a file in a container for reading only where it is a regular one.

To open a device or a pipe is to do something with it, and who acts in a container is outside its cgroup: a device node
that its root has put somewhere, of a watchdog for example, would be opened past the filter that holds for the
container. So a file is opened only after the kernel has told what it is, and then that very one, through its
descriptor. Those stand in /proc, and the container's own /proc does not show us.
"""

from __future__ import annotations

import errno
import os
import stat

_DESCRIPTORS: list[int] = []


def remember() -> None:
    """The folder of this process's descriptors; it is called in the host's mount namespace, and before `opened`."""
    _DESCRIPTORS[:] = [os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)]


def opened(path: str, dir_fd: int | None = None, *, follow: bool = False) -> int:
    """Raises OSError, as where it is no regular file; with `follow`, it may be a link to one."""
    seen = os.open(path, os.O_PATH | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW), dir_fd=dir_fd)
    try:
        if not stat.S_ISREG(os.fstat(seen).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", path)
        return os.open(str(seen), os.O_RDONLY | os.O_CLOEXEC, dir_fd=_DESCRIPTORS[0])
    finally:
        os.close(seen)
