# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether another start of a container lives beside the frozen one: two must not run on one disk.

This happens when the frozen one's monitor was killed, so that LXC said STOPPED, and someone started the container. A
user in the container must not be able to imitate such a start, as that would keep the container frozen; none can,
because all that they start is in the container's pid namespace or one below it, whatever cgroup they put it into. Nor
can an unprivileged user of this host.

A start is recognised by its root, whatever LXC calls it: one that was renamed, or started under another name, runs on
the same disk. Therefore another container whose PID 1 has called chroot(2) into this root file system is taken for one
if all of it, or a directory of it, is mounted there. A start is also recognised by the cgroup that LXC put it into,
wherever its root is by now: see `is_called_so`. A false positive costs a refusal, which names the process and never
ends it; a false negative costs two running copies.
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
    """Before thawing: raise StartFailed while another start of the container is alive.

    Also for a start of something made of its root file system, which has the uuid `its`. With `ask_lxc`, LXC may be
    asked how that start can be ended.
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
    """PID 1 of another start of it, or None.

    Neither LXC nor a disk is asked, because a thaw is waiting for this; and what cannot be determined keeps nothing
    frozen.
    """
    with contextlib.suppress(OSError):
        root, inside = roots.of(frozen.pid), _id(f"/proc/{frozen.pid}/ns/pid")
        return next((pid for pid in lxc.container_processes(frozen.name)
                     if _is_beside(pid, root, inside, frozen)), None)
    return None


def _made_of(frozen: Frozen, its: str) -> int | None:
    """PID 1 of a start of its name whose root file system was made from a snapshot of it, as after lxc-snapshot -r.

    Such a start has neither that root nor that cgroup. As in `of`, nothing is asked that can hang: only the container's
    own disk, which is also that of the frozen one. The frozen one's own root is not looked at: if it watches that
    (fanotify(7)), the look would wait for its answer.
    """
    for pid in lxc.container_processes(frozen.name):
        # It has ended, or cannot be inspected, or its root is no subvolume. A process of another name or another
        # monitor is not asked for its root, because someone in there may have chosen one that hangs.
        with contextlib.suppress(MigratorError, OSError, ValueError):
            if (lxc.is_payload(frozen.name, lxc.cgroup_of(pid)) and not cgroups.holds(str(frozen.cgroup), _cgroup(pid))
                    and is_start(pid) and monitor_socket.may_be_its(_parent(pid), frozen.name, frozen.lxcpath)
                    and _descends_from(pid, its)):
                return pid
    return None


def _descends_from(pid: int, its: str) -> bool:
    """Whether its root is a subvolume that was made of that one; raises MigratorError and OSError."""
    with roots.on_btrfs(pid) as root:
        return root is not None and its in subvolume_uuids.ancestors(root)


def on_disk(name: str, lxcpath: Path, rootfs: Path, cgroup: str = "", limit: float = 0.0) -> int | None:
    """PID 1 of a start in this root file system, or one that `is_called_so`, even if LXC has lost track of it.

    A start that ends within `limit` seconds does not count.
    """
    until = time.monotonic() + limit
    while (found := next((pid for pid in lxc.container_processes(name)
                          if is_on(pid, rootfs) or is_called_so(pid, name, lxcpath, cgroup)), None)) is not None:
        if time.monotonic() >= until:
            return found
        time.sleep(POLL)
    return None


def is_on(pid: int, rootfs: Path) -> bool:
    """Whether it is PID 1 of a start of the container that has this root file system.

    Such a process has the whole of it mounted as its root, and may have called chroot(2) within it since. Another
    container that a directory of it is mounted into has at most that directory.
    """
    with contextlib.suppress(OSError):  # it has ended, or cannot be inspected
        return (roots.is_in(pid, rootfs) and is_start(pid)
                and roots.is_top_of_own_mount(pid) == (roots.of(pid) == roots.at(rootfs)))
    return False


def is_called_so(pid: int, name: str, lxcpath: Path, cgroup: str = "") -> bool:
    """Whether it is PID 1 of a start that LXC put into a cgroup of this container's name, or into `cgroup`.

    Its root does not matter: it may have moved that to a tmpfs by chroot(2) or pivot_root(2). It does not count if the
    LXC monitor that started it answers for another container, such as one of the same name in another LXC path, nor if
    no LXC started it: root in a systemd-nspawn guest can create such a cgroup inside its own. Nor does it count if its
    root is a subvolume, which can be so for one whose monitor has ended: then the root tells whether it is this
    container's.
    """
    with contextlib.suppress(OSError):  # it has ended
        return _is_called_so(pid, _cgroup(pid), name, lxcpath, cgroup)
    return False


def is_answered_for(pid: int, name: str, lxcpath: Path) -> bool:
    """Whether its parent answers as LXC's monitor for this container, or would but accepts no connection."""
    with contextlib.suppress(OSError, ValueError):  # it has ended
        return monitor_socket.is_its(_parent(pid), name, lxcpath)
    return False


def _is_called_so(pid: int, said: str, name: str, lxcpath: Path, cgroup: str = "") -> bool:
    """As `is_called_so`, where `said` is the content of /proc/PID/cgroup."""
    with contextlib.suppress(OSError, ValueError):  # it has ended, or cannot be inspected
        # The cheapest test first, because this is asked about everything that lives in containers.
        return (((_may_be_called_so(said, name) and lxc.is_payload(name, lxc.payload_cgroup(said)))
                 or (bool(cgroup) and cgroups.holds(cgroup, said)))
                and is_start(pid) and monitor_socket.may_be_its(_parent(pid), name, lxcpath)
                and not roots.is_subvolume(pid))
    return False


def _may_be_called_so(said: str, name: str) -> bool:
    return f"/lxc.payload.{name}" in said


def doubt(pid: int, name: str, rootfs: Path) -> str:
    """A hint for whoever is told to end what looks like a start: that it may be another container, and how to check.

    "" if both its root and LXC's name for it show that it is this container's.
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
    """Whether it is PID 1 of a container: in pid and mount namespaces of its own, of the kind that LXC makes for root.

    A visitor is not, even in a pid namespace of its own as arch-chroot makes one, or in another container, whose root
    can create any number of such namespaces in there.
    """
    with contextlib.suppress(OSError):  # it has ended, or cannot be inspected
        return (_is_first(pid) and _id(f"/proc/{pid}/ns/mnt") != _id("/proc/self/ns/mnt") and _is_made_by_root(pid))
    return False


def is_visitor(pid: int) -> bool:
    """Whether it is in this host's mount namespace, as nothing that runs in a container is.

    That is an administrator looking around by chroot or arch-chroot.
    """
    with contextlib.suppress(OSError):  # it has ended
        return _id(f"/proc/{pid}/ns/mnt") == _id("/proc/self/ns/mnt")
    return False


def _is_beside(pid: int, root: roots.Root, inside: tuple[int, int], frozen: Frozen) -> bool:
    """Whether it has that root through a mount of its own (not a descriptor), or `is_called_so`.

    A user in the container can pass a descriptor of its root to another container. If the frozen process itself has
    called chroot(2), neither has the root through a mount of its own, so that test is dropped.
    """
    with contextlib.suppress(OSError):  # it has ended, or cannot be inspected
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
    """Its parent, or if that has ended the process it was reparented to; raises OSError."""
    return int(status(pid, b"PPid")[0])


def _is_first(pid: int) -> bool:
    """Whether it is PID 1 of a pid namespace directly below this host's (NSpid in proc_pid_status(5)).

    Namespaces that a container makes for itself are further down. Raises OSError.
    """
    ids = status(pid, b"NSpid")
    return len(ids) == 2 and ids[1] == b"1"


def _is_made_by_root(pid: int) -> bool:
    """Whether root made its pid namespace, as with all that root's LXC makes, for unprivileged containers too.

    Any user of this host can make a pid namespace inside a user namespace that they made and therefore own, and enter a
    container's root from there, through /proc/PID/root of one of its processes that has their uid. Raises OSError.
    """
    with contextlib.ExitStack() as opened:
        space = os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        opened.callback(os.close, space)
        users = fcntl.ioctl(space, _NS_GET_USERNS)
        opened.callback(os.close, users)
        if os.path.sameopenfile(users, opened.enter_context(Path("/proc/self/ns/user").open("rb")).fileno()):
            return True  # whoever may do that is root
        (owner,) = struct.unpack("=I", fcntl.ioctl(users, _NS_GET_OWNER_UID, bytes(4)))
        return bool(owner == os.geteuid())  # our own uid: only root gets here


def _descends(pid: int, inside: tuple[int, int]) -> bool:
    """Whether a process is in that pid namespace or in a descendant of it; raises OSError."""
    fd = os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    while True:
        try:
            found = os.fstat(fd)
            if (found.st_dev, found.st_ino) == inside:
                return True
            above = fcntl.ioctl(fd, _NS_GET_PARENT)
        except PermissionError:  # this host's own: it has no parent, or none that we may see (ioctl_ns(2))
            return False
        finally:
            os.close(fd)
        fd = above


def _id(path: str) -> tuple[int, int]:
    """Identifies the namespace that a process is in; raises OSError if the process has ended."""
    found = Path(path).stat()
    return found.st_dev, found.st_ino


def _end(frozen: Frozen, second: int, ask_lxc: bool) -> str:
    """The command that ends that start: by name only if LXC knows it by that name.

    Otherwise that command would end the frozen one, after thawing it.
    """
    with contextlib.suppress(MigratorError, OSError):
        if ask_lxc and lxc.Container(frozen.name, frozen.lxcpath).init_pid == second:
            return shlex.join(["lxc-stop", "-P", str(frozen.lxcpath), "-n", frozen.name])
    return f"kill -9 {second}, which ends everything that it has started"
