# SPDX-License-Identifier: GPL-2.0-or-later
"""What nothing ends that ends a whole session or unit: CRIU while it dumps, and the watchdog.

CRIU has code of its own in the tasks that it dumps. Killed in the middle it leaves that in there, and whoever thaws the
container then lets broken processes run. It has no handler for any signal. And its images, where they are in memory,
count for its cgroup: pages do for whoever writes them first (cgroup-v2.rst, "Memory Ownership").
"""

from __future__ import annotations

import contextlib
import os
import resource
from pathlib import Path

from migrator.host import cgroups

# At each of these the kernel ends who goes past it, by SIGXFSZ or SIGXCPU (getrlimit(2)). CRIU itself sees to it that
# it may have as many files open as it needs (rlimit_unlimit_nofile in criu/util.c).
_ENDING = (resource.RLIMIT_FSIZE, resource.RLIMIT_CPU)


def stand(pid: int, top: Path = Path(cgroups.TOP), proc: Path = Path("/proc")) -> list[str]:
    """What ends a whole cgroup does not end this process any more; returns what could not be done for that.

    A session's or a unit's cgroup may be ended as one: by systemd-oomd, by memory.oom.group, at a logout
    (KillUserProcesses in logind.conf(5)), when the unit stops. Nothing does that to the root of the tree: it has no
    cgroup.kill and no limits, may have processes beside its children, and nothing that is left there has to be removed
    (cgroup-v2.rst). LXC keeps its monitors right below it, for the same reason. systemd, when it is executed anew,
    moves who is there into its init.scope, which it never ends. Where the root is a container's, with controllers
    enabled, or there are v1 hierarchies, the kernel refuses it. And the kernel's own choice of whom to kill when there
    is no memory passes it over (oom_score_adj in proc(5)). Nor does it have limits any more that would end it, which it
    has from a shell's `ulimit` or its unit.

    No image says where CRIU has been: it passes its own cgroup over (dump_sets in criu/cgroup.c), and what it notes of
    a task, that has.
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
        except (OSError, ValueError) as error:  # ValueError: in Python's words that one may not raise it
            trouble.append(f"prlimit: {error}")
    return trouble


def is_possible(top: Path = Path(cgroups.TOP)) -> bool:
    """Whether the root of the tree takes processes: the host's does, a container's only without controllers."""
    try:
        return not (top / "cgroup.type").exists() or not (top / "cgroup.subtree_control").read_text().split()
    except OSError:
        return False


def room(top: Path = Path(cgroups.TOP), proc: Path = Path("/proc/self")) -> int | None:
    """Bytes of memory that CRIU's images may take by limits of its cgroups; None where it `stand`s beyond these.

    Elsewhere it stays in that of this process, whose own and all above it count (memory.max in cgroup-v2.rst).
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
            with contextlib.suppress(OSError, ValueError):  # "max", and a root has none
                used = int((each / "memory.current").read_text()) - _reclaimable((each / "memory.stat").read_text())
                found.append(int((each / "memory.max").read_text()) - used)
    return max(0, min(found)) if found else None


def _reclaimable(stat: str) -> int:
    """Bytes that the kernel gives up for others before a limit is hit: of files that can be read again."""
    return sum(int(value) for key, value in (line.split() for line in stat.splitlines())
               if key in ("active_file", "inactive_file"))
