# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether another start of a container lives beside what is frozen of it: two must not run on one disk.

As where the frozen one's monitor was killed, so that LXC said STOPPED, and somebody has started it. Nothing that a user
in the container does passes for that, as it would keep the container frozen: all that he starts is in its pid
namespace, or in one below, whatever cgroup he puts it into. Nor what a user of this host does.

It is told by its root, whatever LXC calls it: one that was renamed, or started by another name, runs on the same disk.
So another container whose own first process has called chroot(2) into this root file system passes for one, where all
of it is mounted there, or a folder was handed in. And by the cgroup that LXC has put it into, wherever its root is by
now: `is_called_so`. Whoever passes for a start costs a refusal, which names him, and is never ended; a start that is
passed over costs two copies.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import struct
import time
from pathlib import Path

from migrator.copies.thawing import Frozen
from migrator.errors import MigratorError
from migrator.errors.memory import StartFailed
from migrator.host import cgroups, lxc, monitor_socket, roots, subvolume_uuids
from migrator.host.processes import status

POLL = 0.02  # seconds between two looks at all processes
_NS_GET_USERNS, _NS_GET_PARENT, _NS_GET_OWNER_UID = 0xB701, 0xB702, 0xB704  # <linux/nsfs.h>


def refuse(frozen: Frozen, *, ask_lxc: bool = True, its: str = "") -> None:
    """Before what stands still is thawed: raises StartFailed while another start of it lives.

    Or one of what was made of its root file system, which has the uuid `its`. LXC may be asked how that one is ended.
    """
    second = of(frozen)
    if second is None and its:
        second = _made_of(frozen, its)
    if second is not None:
        doubted = doubt(second, frozen.name, Path(f"/proc/{frozen.pid}/root"))
        raise StartFailed(name=frozen.name, log="not there", reason=(
            f"it was started here a second time (process {second}), alongside the frozen one. Two copies must not run: "
            f"end that one with {_end(frozen, second, ask_lxc)}, or end the frozen one with: echo 1 "
            f">{frozen.cgroup}/cgroup.kill{doubted}"))


def of(frozen: Frozen) -> int | None:
    """The first process of another start of it.

    Neither LXC nor a disk is asked, as a thaw waits for this; and what cannot be told keeps nothing frozen.
    """
    with contextlib.suppress(OSError):
        root, inside = roots.of(frozen.pid), _id(f"/proc/{frozen.pid}/ns/pid")
        return next((pid for pid in lxc.container_processes(frozen.name)
                     if _is_beside(pid, root, inside, frozen)), None)
    return None


def _made_of(frozen: Frozen, its: str) -> int | None:
    """The first process of what was made of a snapshot of it, and was started by its name, as after lxc-snapshot -r: it
    has neither that root nor that cgroup. As above nobody is asked; only its own disk is, which is that of the frozen
    one's too. The frozen one itself is not: what it watches of its own root (fanotify(7)) would wait for its answer.
    """
    for pid in lxc.container_processes(frozen.name):
        # It has ended, or cannot be told; or its root is no subvolume. What has another name, or another's monitor, is
        # not asked for its root, which somebody in there may have chosen.
        with contextlib.suppress(MigratorError, OSError, ValueError):
            if (lxc.is_payload(frozen.name, lxc.cgroup_of(pid)) and not cgroups.holds(str(frozen.cgroup), _cgroup(pid))
                    and is_start(pid) and monitor_socket.may_be_its(_parent(pid), frozen.name, frozen.lxcpath)
                    and _descends_from(pid, its)):
                return pid
    return None


def _descends_from(pid: int, its: str) -> bool:
    """Whether its root is a subvolume that has been made of that one; raises MigratorError and OSError."""
    with roots.on_btrfs(pid) as root:
        return root is not None and its in subvolume_uuids.ancestors(root)


def on_disk(name: str, lxcpath: Path, rootfs: Path, cgroup: str = "", limit: float = 0.0) -> int | None:
    """The first process of a start that lives in this root file system, or `is_called_so`, be it that LXC has lost it.

    What ends within `limit` seconds does not count.
    """
    until = time.monotonic() + limit
    while (found := next((pid for pid in lxc.container_processes(name)
                          if is_on(pid, rootfs) or is_called_so(pid, name, lxcpath, cgroup)), None)) is not None:
        if time.monotonic() >= until:
            return found
        time.sleep(POLL)
    return None


def is_on(pid: int, rootfs: Path) -> bool:
    """Whether it is the first process of a start of what has this root file system.

    It has all of it mounted as its root, and may have called chroot(2) in there since. Another container, into which a
    folder of it is mounted, has that folder at most.
    """
    with contextlib.suppress(OSError):  # it has ended, or cannot be told
        return (roots.is_in(pid, rootfs) and is_start(pid)
                and roots.is_top_of_own_mount(pid) == (roots.of(pid) == roots.at(rootfs)))
    return False


def is_called_so(pid: int, name: str, lxcpath: Path, cgroup: str = "") -> bool:
    """Whether it is the first process of a start that LXC has put into a cgroup with this container's name, or into
    `cgroup`, wherever it has its root by now, as after a chroot(2) or pivot_root(2) of its own to a tmpfs.

    Not where LXC's monitor, which has started it, answers for another one, as of that name in another LXC path, nor
    where no LXC has started it, as a guest of systemd-nspawn, whose root can make such a cgroup in his own. Nor
    with a subvolume as its root, as such a one may have whose monitor has ended: of this container's own that tells.
    """
    with contextlib.suppress(OSError):  # it has ended
        return _is_called_so(pid, _cgroup(pid), name, lxcpath, cgroup)
    return False


def is_answered_for(pid: int, name: str, lxcpath: Path) -> bool:
    """Whether who has started it answers as LXC's monitor for this container, be it that he takes no connection."""
    with contextlib.suppress(OSError, ValueError):  # it has ended
        return monitor_socket.is_its(_parent(pid), name, lxcpath)
    return False


def _is_called_so(pid: int, said: str, name: str, lxcpath: Path, cgroup: str = "") -> bool:
    """The same, of what /proc/PID/cgroup says."""
    with contextlib.suppress(OSError, ValueError):  # it has ended, or cannot be told
        # The cheapest first: of all that live in containers.
        return (((_may_be_called_so(said, name) and lxc.is_payload(name, lxc.payload_cgroup(said)))
                 or (bool(cgroup) and cgroups.holds(cgroup, said)))
                and is_start(pid) and monitor_socket.may_be_its(_parent(pid), name, lxcpath)
                and not roots.is_subvolume(pid))
    return False


def _may_be_called_so(said: str, name: str) -> bool:
    return f"/lxc.payload.{name}" in said


def doubt(pid: int, name: str, rootfs: Path) -> str:
    """For who is told to end what passes for a start: that it may be another container, and how he sees that.

    "" where both its root and what LXC calls it tell that it is this one's.
    """
    cgroup = Path("/")
    with contextlib.suppress(OSError, ValueError):  # it has ended
        cgroup = lxc.payload_cgroup(_cgroup(pid))
        if lxc.is_payload(name, cgroup) and roots.is_in(pid, rootfs):
            return ""
    return (f" -- But first check by its cgroup, {cgroup}, what process {pid} is: if it belongs to another container, "
            "such as one that has called chroot into this root file system, or has this name in another LXC path, or a "
            f"clone called {name}-1, stop that one instead, by its own name")


def is_start(pid: int) -> bool:
    """Whether it is the first process of a container, in namespaces of its own of processes and of mounts, as LXC makes
    them for root.

    A visitor is not, be he in a pid namespace of his own, as arch-chroot makes one, or in another container, whose
    root can make any such namespaces in there.
    """
    with contextlib.suppress(OSError):  # it has ended, or cannot be told
        return (_is_first(pid) and _id(f"/proc/{pid}/ns/mnt") != _id("/proc/self/ns/mnt") and _is_made_by_root(pid))
    return False


def is_visitor(pid: int) -> bool:
    """Whether it lives in this host's mount namespace, as nothing that runs in a container does: an administrator who
    looks around, by chroot or arch-chroot.
    """
    with contextlib.suppress(OSError):  # it has ended
        return _id(f"/proc/{pid}/ns/mnt") == _id("/proc/self/ns/mnt")
    return False


def _is_beside(pid: int, root: roots.Root, inside: tuple[int, int], frozen: Frozen) -> bool:
    """It has that root by a mount of its own, and not by a descriptor, as a user in there can hand one to the root of
    another container. Unless the frozen one has called chroot(2): then neither has it so. Or it `is_called_so`.
    """
    with contextlib.suppress(OSError):  # it has ended, or cannot be told
        has_root, said = roots.of(pid) == root, _cgroup(pid)
        if not (has_root or _may_be_called_so(said, frozen.name)) or cgroups.holds(str(frozen.cgroup), said):
            return False
        its = has_root and is_start(pid) and (
            roots.is_top_of_own_mount(pid) or not roots.is_top_of_own_mount(frozen.pid))
        return (its or _is_called_so(pid, said, frozen.name, frozen.lxcpath)) and not _descends(pid, inside)
    return False


def _cgroup(pid: int) -> str:
    with open(f"/proc/{pid}/cgroup", "rb", buffering=0) as file:  # noqa: PTH123 -- of each process, before a thaw
        return os.fsdecode(file.read())


def _parent(pid: int) -> int:
    """Who has started it, or where that has ended, who waits for it now; raises OSError."""
    return int(status(pid, b"PPid")[0])


def _is_first(pid: int) -> bool:
    """Whether it is the first process of a pid namespace right below this host's (NSpid in proc_pid_status(5)).

    What a container makes for itself lies further down. Raises OSError.
    """
    ids = status(pid, b"NSpid")
    return len(ids) == 2 and ids[1] == b"1"


def _is_made_by_root(pid: int) -> bool:
    """Whether its pid namespace was, as all are that LXC makes for root, for a container with ids of its own too.

    Any user of this host may make one, in a user namespace that he has made and so owns, and take a container's root
    there, through /proc/PID/root of a process of his id in it. Raises OSError.
    """
    with contextlib.ExitStack() as opened:
        space = os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        opened.callback(os.close, space)
        users = fcntl.ioctl(space, _NS_GET_USERNS)
        opened.callback(os.close, users)
        if os.path.sameopenfile(users, opened.enter_context(Path("/proc/self/ns/user").open("rb")).fileno()):
            return True  # who may do that is root
        (owner,) = struct.unpack("=I", fcntl.ioctl(users, _NS_GET_OWNER_UID, bytes(4)))
        return bool(owner == os.geteuid())  # ours: only root comes here


def _descends(pid: int, inside: tuple[int, int]) -> bool:
    """Whether a process is in that pid namespace, or in one that was made in it; raises OSError."""
    fd = os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    while True:
        try:
            found = os.fstat(fd)
            if (found.st_dev, found.st_ino) == inside:
                return True
            above = fcntl.ioctl(fd, _NS_GET_PARENT)
        except PermissionError:  # this host's: there is none above, or none that we may see (ioctl_ns(2))
            return False
        finally:
            os.close(fd)
        fd = above


def _id(path: str) -> tuple[int, int]:
    """Which namespace a process is in; raises OSError where it has ended."""
    found = Path(path).stat()
    return found.st_dev, found.st_ino


def _end(frozen: Frozen, second: int, ask_lxc: bool) -> str:
    """How that start is ended. By its name only if LXC knows it by that: else it is the frozen one that is ended so,
    and before that thawed.
    """
    with contextlib.suppress(MigratorError, OSError):
        if ask_lxc and lxc.Container(frozen.name, frozen.lxcpath).init_pid == second:
            return shlex.join(["lxc-stop", "-P", str(frozen.lxcpath), "-n", frozen.name])
    return f"kill -9 {second}, which ends everything that it has started"
