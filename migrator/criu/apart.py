# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeps CRIU, while it dumps, and the watchdog from being ended along with a session or unit.

CRIU injects code into the tasks that it dumps. If it is killed half-way, that code stays in there, and whoever then
thaws the container lets broken processes run; and it handles no signals. In addition, its images, if in memory, are
charged to its cgroup: a page belongs to the cgroup that writes it first (cgroup-v2.rst, "Memory Ownership").
"""

from __future__ import annotations

import contextlib
import os
import resource
from pathlib import Path

from migrator.host import cgroups

# A process that exceeds one of these is ended by the kernel, with SIGXFSZ or SIGXCPU (getrlimit(2)). CRIU itself makes
# sure that it may open as many files as it needs (rlimit_unlimit_nofile in criu/util.c).
_ENDING = (resource.RLIMIT_FSIZE, resource.RLIMIT_CPU)


def stand(pid: int, top: Path = Path(cgroups.TOP), proc: Path = Path("/proc")) -> list[str]:
    """Detach a process from what ends a whole cgroup; returns what could not be done.

    The cgroup of a session or unit may be ended as a whole: by systemd-oomd, by memory.oom.group, at logout
    (KillUserProcesses in logind.conf(5)), or when the unit stops. Nothing does that to the root of the tree: it has no
    cgroup.kill and no limits, may contain processes beside its children, and nothing left in it has to be removed
    (cgroup-v2.rst). LXC keeps its monitors right below it for the same reason. When systemd re-executes itself, it
    moves processes there into its init.scope, which it never ends. If the root is a container's with controllers
    enabled, or there are v1 hierarchies, the kernel refuses the move. The kernel's OOM killer is told to pass the
    process over (oom_score_adj in proc(5)). Finally, resource limits that would end it, from a shell's `ulimit` or its
    unit, are lifted.

    No image records where CRIU has been: it leaves out its own cgroup (dump_sets in criu/cgroup.c), and what it notes
    about a task is the task's own.
    """
    trouble = []
    for path, text in ((top / "cgroup.procs", str(pid)), (proc / str(pid) / "oom_score_adj", "-1000")):
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, text.encode())
            finally:
                os.close(fd)
        except OSError as error:
            trouble.append(f"{path}: {error.strerror}")
    for limit in _ENDING:
        try:
            resource.prlimit(pid, limit, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        except (OSError, ValueError) as error:  # ValueError is how Python says that a limit may not be raised
            trouble.append(f"prlimit: {error}")
    return trouble


def is_possible(top: Path = Path(cgroups.TOP)) -> bool:
    """Whether the root of the tree takes processes: the host's does, a container's only without controllers."""
    try:
        return not (top / "cgroup.type").exists() or not (top / "cgroup.subtree_control").read_text().split()
    except OSError:
        return False


def room(top: Path = Path(cgroups.TOP), proc: Path = Path("/proc/self")) -> int | None:
    """Bytes of memory that CRIU's images may take within its cgroups' limits; None if `stand` moves it beyond those.

    If it cannot move, it stays in this process's cgroup, whose limit counts together with those of all its ancestors
    (memory.max in cgroup-v2.rst).
    """
    if (top / "cgroup.procs").exists() and is_possible(top):
        return None
    found = []
    with contextlib.suppress(OSError, StopIteration):
        said = (proc / "cgroup").read_text().splitlines()
        folder = top / next(line[3:] for line in said if line.startswith("0::")).strip("/")
        for each in (folder, *folder.parents):
            if not each.is_relative_to(top):
                break
            with contextlib.suppress(OSError, ValueError):  # "max", and the root has none
                used = int((each / "memory.current").read_text()) - _reclaimable((each / "memory.stat").read_text())
                found.append(int((each / "memory.max").read_text()) - used)
    return max(0, min(found)) if found else None


def _reclaimable(stat: str) -> int:
    """Bytes that the kernel reclaims before a limit is hit: page cache, which can be read again."""
    return sum(int(value) for key, value in (line.split() for line in stat.splitlines())
               if key in ("active_file", "inactive_file"))
