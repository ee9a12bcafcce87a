# SPDX-License-Identifier: GPL-2.0-or-later
"""Open a file in a container for reading, but only if it is a regular file.

Opening a device or a pipe has effects of its own. As we act in the container from outside its cgroup, its device filter
does not apply to us: a device node that its root has put somewhere, of a watchdog for example, would be opened despite
it. So the file is first opened with O_PATH, and if the kernel says that it is a regular one, that very file is opened
again through its descriptor. This takes a /proc in which we are visible, and in the container's own we are not.
"""

from __future__ import annotations

import errno
import os
import stat

_DESCRIPTORS: list[int] = []


def remember() -> None:
    """Open the folder of this process's descriptors, for `opened`.

    To be called while still in the host's mount namespace.
    """
    _DESCRIPTORS[:] = [os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)]


def opened(path: str, dir_fd: int | None = None, *, follow: bool = False) -> int:
    """A descriptor of it; raises OSError, also if it is not a regular file. With `follow`, a symlink to one will do."""
    seen = os.open(path, os.O_PATH | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW), dir_fd=dir_fd)
    try:
        if not stat.S_ISREG(os.fstat(seen).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", path)
        return os.open(str(seen), os.O_RDONLY | os.O_CLOEXEC, dir_fd=_DESCRIPTORS[0])
    finally:
        os.close(seen)
