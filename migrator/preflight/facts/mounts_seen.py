# SPDX-License-Identifier: GPL-2.0-or-later
"""What the processes of a container have mounted, in each of its mount namespaces."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from migrator.base.folder_set import FolderSet
from migrator.criu import terminals
from migrator.host import mount_tables
from migrator.host.mountinfo import SERVERLESS, MountLine, parse_mountinfo
from migrator.host.proc import link

TOO_MANY = "mounts-unread"  # the kind of the note that says so


class Mounted:
    """What is mounted in one mount namespace, and what of it is asked for by each of many files and mounts.

    Whoever looked at all mounts each time could be held up for hours: a container's root makes 100,000 of either.
    """

    def __init__(self, lines: Sequence[MountLine] = ()) -> None:
        self.lines = list(lines)
        self.ttys = {(line.device, index) for line in lines if (index := terminals.index(line)) is not None}  # LXC's
        self.cgroups = {line.target for line in lines if line.type == "cgroup2"}  # in which nothing was looked up yet
        self.looked_up: set[tuple[int, int]] = set()  # (device, inode) of files: 60,000 links take half a second
        self._servers = FolderSet(line.target for line in lines if line.type not in SERVERLESS)
        self._targets: dict[str, list[str]] = {}
        for line in lines:
            if line.type in SERVERLESS:
                self._targets.setdefault(line.device, []).append(line.target)

    def may_wait(self, path: str) -> bool:
        """Whether the way to a path may lead into a mount that asks a server, and waits for it without a limit."""
        return self._servers.holds(path)

    def targets(self, device: str) -> list[str]:
        """Where a file system is mounted, unless it is one that asks a server."""
        return self._targets.get(device, [])


class MountsSeen:
    """Read once for each namespace, from the first process in it that is asked about."""

    def __init__(self) -> None:
        self.terminals: set[str] = set()  # the devices of its devpts file systems
        self.too_many_for = 0  # the first process whose mounts were not read, as there are too many; 0 for none
        self._tables = mount_tables.MountTables()
        self._ids: set[int] = set()  # of all of them
        self._seen: dict[str, Mounted] = {}

    def by(self, pid: int) -> Mounted:
        """Those seen by one of the container's own processes; none if it has ended, or if there are too many."""
        namespace = link(f"/proc/{pid}/ns/mnt")
        if namespace not in self._seen:
            lines = self._read(pid)
            self._seen[namespace] = Mounted(lines)
            self._ids |= {line.id for line in lines}
            self.terminals |= {line.device for line in lines if line.type == "devpts"}
        return self._seen[namespace]

    def within(self, namespace: str) -> Mounted:
        """Those of a namespace, if any of its processes has been asked about."""
        return self._seen.get(namespace) or Mounted()

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
