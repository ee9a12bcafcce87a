# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the mounts of a restored container lead: only to its own and to what this host's configuration binds.

CRIU binds again what was bound from the host by the path that it had on the other host, and follows symbolic links on
the way. In a directory that a container may write to, it can leave such a link on one host and a directory of that name
on the other, and would then be given whatever the link leads to: root's files, or another container's disk. Checking
the path beforehand is not enough, because others who may write there can change it meanwhile. So what counts is what is
mounted in the end, before any task runs.

`at_restore` imports this module while a container is down.
"""

from __future__ import annotations

import os

from migrator.criu import mount_flags
from migrator.criu.mount_flags import _CLONE_NEWNS, _read
from migrator.host import mount_tables

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PLAN = "mount-sources"  # the file beside the images
PLAN_LIMIT = 16 << 20  # bytes
# The words of a plan. A line is `WORD RIGHT PATH`, with the path on this host in mountinfo's notation, and `rw`, or
# `ro` for what may only be mounted read-only; or `NEW TYPE TARGET` or `OWN TYPE TARGET`, for what CRIU does not bind by
# a path of this host: it makes a new file system of this type there, or mounts more of one that it has made.
NEW = "new"  # this host does not have it mounted
OWN = "own"  # this host may have it mounted too
JUST = "just"  # this file or directory
BELOW = "below"  # and what is in it
ALL = "all"  # and what this host has mounted in it


class Mount:
    """A line of mountinfo (proc_pid_mountinfo(5))."""

    def __init__(self, line: str) -> None:
        left, _, right = line.partition(" - ")
        self.id, self.parent, self.device, self.root, self.target, words = left.split(" ")[:6]
        self.read_only = "ro" in words.split(",")
        self.type = right.partition(" ")[0]


def parsed(mountinfo: str) -> list[Mount]:
    return [Mount(line) for line in mountinfo.split("\n") if line]


class Host:
    """What this host has mounted, and what of it a plan lets a container have."""

    def __init__(self, mountinfo: str, plan: str) -> None:
        self.mounts = parsed(mountinfo)
        self.devices = {mount.device for mount in self.mounts}
        self.procs = {mount.device for mount in self.mounts if mount.type == "proc"}  # one for each pid namespace
        self._on: dict[str, list[Mount]] = {}
        for mount in self.mounts:
            if mount.id != mount.parent:
                self._on.setdefault(mount.parent, []).append(mount)
        ids = {mount.id for mount in self.mounts}
        self._tops = [mount for mount in self.mounts if mount.parent not in ids or mount.parent == mount.id]
        self.made: dict[str, set[tuple[str, str]]] = {NEW: set(), OWN: set()}  # type, target
        self.just: dict[tuple[str, str], bool] = {}  # by device and root, whether read-only; as many as it has mounts
        self.below: list[tuple[str, str, bool]] = []  # device, root, whether read-only
        for line in filter(None, plan.split("\n")):
            word, right, path = line.split(" ")
            if word in self.made:
                self.made[word].add((right, path))
                continue
            for place in self._places(word, path):
                if word == JUST:
                    self.just[place] = right == "ro" and self.just.get(place, True)
                else:
                    self.below.append((*place, right == "ro"))

    def _places(self, word: str, path: str) -> Iterator[tuple[str, str]]:
        mount = self._holding(path)
        if mount is None:
            return
        yield mount.device, joined(mount.root, path[len(mount.target.rstrip("/")):])
        if word == ALL:
            yield from ((each.device, each.root) for each in self.mounts if is_below(each.target, path))

    def _holding(self, path: str) -> Mount | None:
        """The mount that contains a path without symbolic links."""
        found: Mount | None = None
        onward = self._tops
        while nearer := [mount for mount in onward if is_below(path, mount.target)]:
            found = min(nearer, key=lambda mount: len(mount.target))  # it covers what was mounted deeper before
            onward = self._on.get(found.id, [])
        return found

    def may_have(self, mount: Mount) -> bool:
        """Whether a container may have it mounted.

        Something that this host does not have mounted need not be the container's own: a link may lead to a namespace
        (/proc/PID/ns/net). The kernel does not bind in CRIU's namespace what another container or a service has mounted
        in a namespace of its own (/proc/PID/root; `check_mnt` in fs/namespace.c), unless it is not mounted anywhere yet
        and a process holds it open (`fsmount`). Who has what mounted in other namespaces is not asked: a user with many
        mounts could delay every restore.
        """
        place = mount.type, mount.target
        if mount.device not in self.devices:
            return place in self.made[NEW] or place in self.made[OWN]
        if place in self.made[OWN] and mount.device not in self.procs:
            return True
        read_only = self.just.get((mount.device, mount.root))
        if read_only is not None and (mount.read_only or not read_only):
            return True
        return any(device == mount.device and (mount.read_only or not read_only) and is_below(mount.root, root)
                   for device, root, read_only in self.below)

    def path(self, mount: Mount) -> str:
        """Where this host has what is mounted in a container."""
        for each in self.mounts:
            if each.device == mount.device and is_below(mount.root, each.root):
                return f"{joined(each.target, mount.root[len(each.root.rstrip('/')):])} of this host"
        whose = "this host" if mount.device in self.devices else f"a {mount.type} that was not made for it"
        return f"{mount.root} of {whose}"


def joined(folder: str, rest: str) -> str:
    return folder.rstrip("/") + ("/" + rest.strip("/") if rest.strip("/") else "") or "/"


def is_below(path: str, folder: str) -> bool:
    return folder == "/" or path == folder or path.startswith(folder + "/")


def require(plan: str, pids: Iterable[int], ttys: Iterable[int]) -> None:
    """Raise PermissionError if a mount of a container, whose processes are `pids`, leads where it may not.

    `ttys` are the numbers of this host's pseudo-terminals that LXC holds for it.
    """
    plan += "".join(f"{JUST} rw /dev/pts/{number}\n" for number in ttys)
    host = Host(_read("/proc/self/mountinfo"), plan)
    judged: set[str] = set()
    for text in _seen(pids):
        for mount in parsed(text):
            if mount.id not in judged and not host.may_have(mount):
                raise PermissionError(
                    f"{mount.target} would be {host.path(mount)}"
                    f"{'' if mount.read_only else ', writable'}, which its configuration does not bind here")
            judged.add(mount.id)


def _seen(pids: Iterable[int]) -> Iterator[str]:
    """What is mounted in each mount namespace: from the top, with the images' names, and as each process sees it.

    With a root of its own, a process sees less, under other names; but also what the top is mounted over.

    Raises TooManyMounts if they differ in more than is read.
    """
    texts: set[bytes] = set()
    seen, namespaces = set(), set()
    left = mount_tables.RESTORED_LIMIT
    for pid in pids:
        try:
            seen_from = mount_flags.sees(pid)
            if seen_from in seen:
                continue
            text = mount_tables.read(f"/proc/{pid}/mountinfo", mount_tables.RESTORED_LIMIT)
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
        except OSError as error:
            if error.errno in (2, 3, 22):  # ENOENT, ESRCH, EINVAL: a zombie, which has none
                continue
            raise
        seen.add(seen_from)
        if text not in texts:  # it may be the same from elsewhere
            texts.add(text)
            left -= len(text)
            if left < 0:
                raise mount_tables.TooManyMounts
        if namespace not in namespaces:
            namespaces.add(namespace)
            yield _from_the_top(pid)
    yield from map(os.fsdecode, texts)


def _from_the_top(pid: int) -> str:
    """Everything mounted in a process's mount namespace; we leave our own and enter it again afterwards."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    here, there = (os.open(f"/proc/{each}/ns/mnt", os.O_RDONLY) for each in ("self", pid))
    proc = os.open("/proc/self", os.O_RDONLY)
    try:
        if libc.setns(there, _CLONE_NEWNS):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), f"mount namespace of process {pid}")
        try:
            return os.fsdecode(mount_tables.read(os.open("mountinfo", os.O_RDONLY, dir_fd=proc),
                                                 mount_tables.RESTORED_LIMIT))
        finally:
            if libc.setns(here, _CLONE_NEWNS):  # and its root
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "our own mount namespace")
    finally:
        for each in (here, there, proc):
            os.close(each)


def terminals(init: int, proc: str = "/proc") -> set[int]:
    """The numbers of the pseudo-terminals held by LXC's monitor, the parent of the container's PID 1 `init`.

    It holds none of anyone's login: `run` gives it no input or output of ours.
    """
    monitor = _read(f"{proc}/{init}/stat").rpartition(")")[2].split()[1]
    found = set()
    for name in os.listdir(f"{proc}/{monitor}/fd"):
        try:
            target = os.readlink(f"{proc}/{monitor}/fd/{name}")
            number = target.removeprefix("/dev/pts/")
            if target.endswith("/ptmx"):
                number = _read(f"{proc}/{monitor}/fdinfo/{name}").partition("tty-index:")[2].partition("\n")[0].strip()
        except OSError:  # it is closed by now
            continue
        if number.isdecimal():
            found.add(int(number))
    return found
