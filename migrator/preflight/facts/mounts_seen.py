# SPDX-License-Identifier: GPL-2.0-or-later
"""What the processes of a container have mounted, in each of its mount namespaces."""

from __future__ import annotations

import contextlib

from migrator.host import mount_tables
from migrator.host.mountinfo import MountLine, parse_mountinfo
from migrator.host.proc import link

TOO_MANY = "mounts-unread"  # the kind of the note that says so


class MountsSeen:
    """Read once for each namespace, from the first process in it that is asked about."""

    def __init__(self) -> None:
        self.terminals: set[str] = set()  # the devices of its devpts file systems
        self.too_many_for = 0  # the first process whose mounts were not read, as there are too many; 0 for none
        self._tables = mount_tables.MountTables()
        self._ids: set[int] = set()  # of all of them
        self._lines: dict[str, list[MountLine]] = {}

    def by(self, pid: int) -> list[MountLine]:
        """Those seen by one of the container's own processes; none if it has ended, or if there are too many."""
        namespace = link(f"/proc/{pid}/ns/mnt")
        if namespace not in self._lines:
            self._lines[namespace] = lines = self._read(pid)
            self._ids |= {line.id for line in lines}
            self.terminals |= {line.device for line in lines if line.type == "devpts"}
        return self._lines[namespace]

    def within(self, namespace: str) -> list[MountLine]:
        """Those of a namespace, if any of its processes has been asked about."""
        return self._lines.get(namespace, [])

    @property
    def are_all(self) -> bool:
        return not self.too_many_for

    def hold(self, id_: int) -> bool:
        """Whether a mount is, or may be, one of them."""
        return id_ in self._ids or not self.are_all

    def _read(self, pid: int) -> list[MountLine]:
        try:
            with contextlib.suppress(OSError):  # it has ended
                return parse_mountinfo(self._tables.read(f"/proc/{pid}/mountinfo"))
        except mount_tables.TooManyMounts:
            self.too_many_for = self.too_many_for or pid
        return []
