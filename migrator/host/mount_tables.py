# SPDX-License-Identifier: GPL-2.0-or-later
"""The text of /proc/PID/mountinfo (proc_pid_mountinfo(5)) of processes of a container: only so much of it is read.

A mount takes a few hundred bytes of the container's memory, but its line names two paths in full, and these may be as
long as the container's root likes: a mount(2) in a folder that was reached step by step. So whoever read all of it
could be made to take all of the host's memory. Who looks at one line at a time needs no limit: the container pays for
the folders that make one line long.

`at_restore` imports this module while a container is down, so it imports little itself.
"""

from __future__ import annotations

import io
import os

LIMIT = 16 << 20  # bytes, of all mount namespaces of a container together; a line is usually of some 100 to 300
RESTORED_LIMIT = 4 * LIMIT  # the same at a restore, as the paths to what the destination binds may be longer
# Bytes of a path as it is written there. No system call takes one of more than 4096 (PATH_MAX), so CRIU could not mount
# it again; some characters are written as four, and at a restore there is another folder's path before it.
PATH_LIMIT = 8 * 4096


class TooManyMounts(ValueError):
    """More is mounted in a container than is read, or at a longer path."""

    def __init__(self, why: str = f"its mountinfo exceeds the limit of {LIMIT >> 20} MiB") -> None:
        super().__init__(f"more is mounted in the container than is read: {why}")


class MountTables:
    """Reads what several processes have mounted, up to a limit for all of them together."""

    def __init__(self, limit: int | None = None) -> None:
        self.left = LIMIT if limit is None else limit

    def read(self, file: str | int) -> str:
        """One more, by path or descriptor; raises TooManyMounts and OSError."""
        try:
            data = read(file, self.left)
        except TooManyMounts:
            self.left = 0  # so that no other is read either
            raise
        self.left -= len(data)
        return os.fsdecode(data)


def read(file: str | int, limit: int | None = None) -> bytes:
    """All of one; raises TooManyMounts if it or a path in it is longer than that, and OSError. A descriptor is closed.
    """
    limit = LIMIT if limit is None else limit
    with open(file, "rb") as opened:  # noqa: PTH123 -- it may be a descriptor
        data = opened.read(limit + 1)
    if len(data) > limit:
        raise TooManyMounts
    for line in io.BytesIO(data):
        if len(line) > PATH_LIMIT and any(len(path) > PATH_LIMIT for path in line.split(b" ", 5)[3:5]):
            raise TooManyMounts(f"the path of a mount is longer than {PATH_LIMIT >> 10} KiB")
    return data
