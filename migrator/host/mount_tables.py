# SPDX-License-Identifier: GPL-2.0-or-later
"""The text of /proc/PID/mountinfo (proc_pid_mountinfo(5)) of processes of a container: only so much of it is read.

A mount takes a few hundred bytes of the container's memory, but its line names two paths in full, and these may be tens
of KiB long. So whoever read all of it could be made to take all of the host's memory. Who looks at one line at a time
needs no limit: the container pays for the folders that make one line long.

`at_restore` imports this module while a container is down, so it imports little itself.
"""

from __future__ import annotations

import os

LIMIT = 16 << 20  # bytes, of all mount namespaces of a container together; a line is usually of some 100 to 300
RESTORED_LIMIT = 4 * LIMIT  # the same at a restore, as the paths to what the destination binds may be longer


class TooManyMounts(ValueError):
    """More is mounted in a container than is read."""


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
    """All of one; raises TooManyMounts if it has more than `limit` bytes, and OSError. A descriptor is closed."""
    limit = LIMIT if limit is None else limit
    with open(file, "rb") as opened:  # noqa: PTH123 -- it may be a descriptor
        data = opened.read(limit + 1)
    if len(data) > limit:
        raise TooManyMounts("more is mounted in the container than is read: its mountinfo exceeds the limit of "
                            f"{LIMIT >> 20} MiB")
    return data
