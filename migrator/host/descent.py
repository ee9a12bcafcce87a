# SPDX-License-Identifier: GPL-2.0-or-later
"""Which processes are a container's own: those that descend from its PID 1.

CRIU finds what it dumps by going from parents to children (parse_children in criu/proc_parse.c). A process that was
started from outside, by lxc-attach say, or was put into the container's cgroup, is frozen along with it, is skipped by
CRIU with a warning (freezer_wait_processes in criu/seize.c), and ends when everything in that cgroup is ended.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

from migrator.base import process_id

# How many are looked at while everything is frozen, because users in there may make as many as they like. The last ones
# count, because LXC puts attached processes into a cgroup `.lxc` below the container's own (cgroup_attach_leaf in
# liblxc's cgfsng.c).
PROCESSES_MAX = 10_000
LOOKS = 3


def of(init: int, pids: Iterable[int], parent_of: Callable[[int], int]) -> set[int]:
    """Those of the processes that descend from `init`, and those in between; a parent of 0 means none.

    Each is asked for its parent only once.
    """
    found, others = {init}, {0}
    for pid in pids:
        way = []
        while pid not in found and pid not in others:
            way.append(pid)
            others.add(pid)
            pid = parent_of(pid)
        if pid in found:
            found.update(way)
    return found


def stranger(init: int, pids: Iterable[int]) -> int | None:
    """One of the processes that does not descend from `init`; one that ends meanwhile does not count."""
    left = [pid for pid in pids if pid > 0][-PROCESSES_MAX:]
    for _ in range(LOOKS):  # the children of a process that ends are reparented
        own = of(init, left, functools.cache(_parent))
        left = [pid for pid in left if pid not in own and _parent(pid)]
        if not left:
            return None
    return left[0]


def _parent(pid: int) -> int:
    """A process's parent (proc_pid_stat(5)); 0 if it has ended or is just being reaped."""
    try:
        return int(process_id.stat_fields(pid)[1])
    except (OSError, IndexError):
        return 0
