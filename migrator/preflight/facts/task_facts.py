# SPDX-License-Identifier: GPL-2.0-or-later
"""What the processes of a container hold, as far as it decides whether CRIU can dump them: read from /proc.

Processes come and go while we read; what has vanished is left out. Each thing seen is a `Note`, and things of one kind
are counted under the first process that had it, so that a thousand workers make one note.
"""

# Plain strings: creating a Path for each of ten thousand reads of /proc would double their cost.
# ruff: noqa: PTH115, PTH208

from __future__ import annotations

import contextlib
import dataclasses
import os
import stat
import time
from collections.abc import Collection

from migrator.criu import ghost_paths, socket_names
from migrator.host import descent, proc, roots
from migrator.host.proc import Status, link, read_text
from migrator.preflight.facts import mounts_seen, sandbox_facts, unix_facts, watch_facts

TASKS_MAX = 10_000
DESCRIPTORS_MAX = 100_000
NOTES_MAX = 2_000
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
WAIT, WAITS = 0.05, 10  # seconds, and how often
PTS = range(136, 144)  # major numbers of UNIX 98 pseudo-terminals (devices.txt)
PTMX = (5, 2)


@dataclasses.dataclass(frozen=True)
class Note:
    """One thing that a process of the container was seen to have."""

    kind: str
    detail: str
    count: int = 1
    pid: int = 0  # on the host; of the first process that had it
    task: str = ""  # that process's name
    size: int = 0  # bytes, of the largest
    unit: str = ""  # the unit of systemd in the container that this process is of, see `proc.unit_of`
    busy: bool = False  # of a mount: something in it is open


@dataclasses.dataclass(frozen=True)
class Tasks:
    """All the processes together."""

    count: int = 0
    threads: int = 0
    uids: tuple[int, ...] = ()  # as seen from the host
    names: tuple[str, ...] = ()
    memory: int = 0  # bytes, anonymous and shared, swapped out or not, summed over the processes
    notes: tuple[Note, ...] = ()
    complete: bool = True  # False if a limit of this module cut the look short


def gather(init: int, in_cgroup: Collection[int]) -> Tasks:
    """Look at every process of the container whose PID 1 is `init`.

    `in_cgroup` are the processes in its cgroup, the ones that freezing stops; those that are only in its PID namespace
    (nsenter(1)) are found in addition.
    """
    look = _Look(init)
    pids = _members(init, in_cgroup)
    statuses = {}
    for pid in pids[:TASKS_MAX]:
        if status := proc.status_of(pid):
            statuses[pid] = status
    look.complete = len(pids) <= TASKS_MAX
    look.own = descent.of(init, statuses, lambda pid: statuses[pid].parent if pid in statuses else 0)
    for status in statuses.values():
        if status.pid in look.own:
            look.mounts.by(status.pid)
            look.note_unread_mounts(status)
    for status in statuses.values():
        _look_at_task(look, status, statuses, in_cgroup)
        look.descriptors(status)
    look.sandboxed(statuses.get(init))
    look.half_pairs(statuses.keys())
    look.still_waiting()
    return Tasks(
        count=len(statuses), threads=sum(status.threads for status in statuses.values()),
        uids=tuple(sorted({uid for status in statuses.values() for uid in status.uids}))[:1000],
        names=tuple(sorted({status.name for status in statuses.values()}))[:1000],
        memory=sum(status.memory for status in statuses.values()),
        notes=tuple(look.notes.values()), complete=look.complete,
    )


def _members(init: int, in_cgroup: Collection[int]) -> list[int]:
    namespace = link(f"/proc/{init}/ns/pid")
    found = set(in_cgroup) | {init}
    with contextlib.suppress(OSError):
        for entry in os.listdir("/proc"):
            if entry.isdecimal() and int(entry) not in found and link(f"/proc/{entry}/ns/pid") == namespace != "":
                found.add(int(entry))
    return sorted(found)


def _look_at_task(look: _Look, status: Status, statuses: dict[int, Status], in_cgroup: Collection[int]) -> None:
    if status.pid not in look.own:
        look.note("attached", status.name, status)
    elif status.session_inside == 0:
        look.note("zombie-session-outside" if status.state == "Z" else "session-outside", status.name, status)
    elif status.state == "Z" and status.parent == look.init and any(
            other.state == "Z" and other.inside == status.session_inside and other is not status
            for other in statuses.values()):
        look.note("zombie-session", status.name, status)
    if status.tracer:
        look.note("traced", f"{status.name} by process {status.tracer}", status)
    if status.state == "D":
        look.waiting.append(status)
    if status.state == "Z":  # cgroup.procs and its namespaces no longer list it
        return
    if in_cgroup and not _is_in(in_cgroup, status.pid):
        look.note("outside-cgroup", status.name, status)
    for kind in NAMESPACES:
        found = link(f"/proc/{status.pid}/ns/{kind}")
        if found and look.namespaces[kind] and found != look.namespaces[kind]:
            look.note("nested-namespace", kind, status, of_unit=kind not in ("mnt", "net"))
            if kind == "mnt" and status.pid in look.own:
                look.sandboxes.setdefault(found, status)


def _is_in(in_cgroup: Collection[int], pid: int) -> bool:
    """Whether a process is in the container's cgroup; if it was born after that was read, its own file tells."""
    if pid in in_cgroup:
        return True
    own = read_text(f"/proc/{pid}/cgroup")
    return not own or any(own == read_text(f"/proc/{other}/cgroup") for other in in_cgroup)


class _Look:
    """The notes so far, and what is looked up repeatedly while they are made."""

    def __init__(self, init: int) -> None:
        self.init = init
        self.notes: dict[tuple[str, str], Note] = {}
        self.complete = True
        self.own = {init}  # the processes that descend from it
        self.namespaces = {kind: link(f"/proc/{init}/ns/{kind}") for kind in NAMESPACES}
        self.left = DESCRIPTORS_MAX
        self.mounts = mounts_seen.MountsSeen()
        self.sandboxes: dict[str, Status] = {}  # the first process in each mount namespace of their own
        self.held: dict[int, Status] = {}  # by the id of a mount, the first process that has something in it open
        self.slaves: dict[tuple[int, int], tuple[str, Status]] = {}  # (devpts, index) of pseudo-terminals
        self.masters: set[tuple[int, int]] = set()  # likewise; a devpts of 0 stands for any
        self.pipes: dict[str, tuple[int, Status]] = {}  # which ends of each pipe are open: 1 read, 2 write
        self.unix_sockets: dict[int, Status] = {}  # by inode
        self.waiting: list[Status] = []  # those in uninterruptible sleep

    def note(self, kind: str, detail: str, status: Status, size: int = 0, *, of_unit: bool = False,
             busy: bool = False) -> None:
        """What was seen; the same of another unit is another thing where it is `of_unit`."""
        unit = proc.unit_of(read_text(f"/proc/{status.pid}/cgroup")) if of_unit else ""
        key = (kind, f"{detail}\0{unit}")
        if had := self.notes.get(key):
            self.notes[key] = dataclasses.replace(had, count=had.count + 1, size=max(size, had.size),
                                                  busy=busy or had.busy)
        elif len(self.notes) < NOTES_MAX:
            unit = unit or proc.unit_of(read_text(f"/proc/{status.pid}/cgroup"))
            self.notes[key] = Note(kind, detail[:4096], 1, status.pid, status.name, size, unit, busy)
        else:
            self.complete = False

    def note_unread_mounts(self, status: Status) -> None:
        if self.mounts.too_many_for == status.pid:
            self.note(mounts_seen.TOO_MANY, "", status)
            self.complete = False

    def sandboxed(self, first: Status | None) -> None:
        nested = {namespace: self.mounts.within(namespace) for namespace in self.sandboxes}
        for kind, detail, status, busy in sandbox_facts.found(first, self.mounts.by(self.init), nested, self.sandboxes,
                                                              self.held) if first else ():
            self.note(kind, detail, status, of_unit=True, busy=busy)

    def descriptors(self, status: Status) -> None:
        folder = f"/proc/{status.pid}/fd"
        try:
            names = os.listdir(folder)
        except OSError:
            return
        self.left -= len(names)
        if self.left < 0:
            self.complete = False
            return
        for name in names:
            with contextlib.suppress(OSError):  # closed meanwhile
                self.descriptor(status, f"{folder}/{name}", os.readlink(f"{folder}/{name}"))
        for name in ("cwd", "exe", "root"):
            with contextlib.suppress(OSError):
                path = f"/proc/{status.pid}/{name}"
                if (target := os.readlink(path)).endswith(" (deleted)"):
                    self.deleted(status, target, roots.opened(path))

    def descriptor(self, status: Status, path: str, target: str) -> None:
        if target.startswith("socket:"):
            protocol = proc.socket_protocol(path)
            self.note("socket", protocol, status)
            if protocol.startswith("UNIX") and target[8:-1].isdecimal():
                self.unix_sockets.setdefault(int(target[8:-1]), status)
        elif target.startswith("pipe:"):
            mode = os.lstat(path).st_mode
            ends = (1 if mode & stat.S_IRUSR else 0) | (2 if mode & stat.S_IWUSR else 0)
            self.pipes[target] = (self.pipes.get(target, (0, status))[0] | ends, status)
        elif target.startswith("anon_inode:"):
            kind = target.removeprefix("anon_inode:").strip("[]")
            self.note("anon-inode", kind, status)
            if kind in ("inotify", "fanotify"):
                self.watches(status, path)
        elif target.startswith("/"):
            self.file(status, path, target)
        elif ":[" in target and target.partition(":[")[0] in NAMESPACES:
            if target not in self.namespaces.values():
                self.note("namespace-file", target, status)
        elif target.startswith("dmabuf:") or target.startswith("mnt:"):
            self.note("anon-inode", target.partition(":")[0], status)

    def file(self, status: Status, path: str, target: str) -> None:
        deleted = target.endswith(" (deleted)")
        if target.startswith("/memfd:"):
            return
        try:
            found = roots.opened(path)
        except FileNotFoundError:  # closed meanwhile
            raise
        except OSError:
            os.readlink(path)  # nor has it been closed by now
            self.note("file-unknown", target, status)
            return
        if stat.S_ISCHR(found.mode) or stat.S_ISBLK(found.mode):
            self.device(status, path, target, found)
        elif deleted:
            self.deleted(status, target, found)
        mount = watch_facts.fdinfo(path, "mnt_id")
        if mount:
            self.held.setdefault(int(mount), status)
        if mount and not self.mounts.hold(int(mount)) and not self.is_lxcs(_pts(found)):
            self.note("outside-file", target, status)

    def deleted(self, status: Status, target: str, found: roots.Opened) -> None:
        if found.links:
            return
        name = target.removesuffix(" (deleted)")
        self.note("deleted-file", name, status, found.size)
        namespace = self.namespaces["mnt"]
        if link(f"/proc/{status.pid}/ns/mnt") != namespace or not self.mounts.are_all or (
                self.mounts.within(namespace).may_wait(name)):
            return  # if it has mounts of its own, that path says nothing about them; as in `ghosts.require_here`
        with contextlib.suppress(OSError):
            root = os.open(f"/proc/{self.init}/root", os.O_PATH | os.O_CLOEXEC)
            try:
                if trouble := ghost_paths.why_not(root, name, folder=stat.S_ISDIR(found.mode)):
                    self.note("deleted-astray", f"{name}: {trouble}", status)
            finally:
                os.close(root)

    def bound_sockets(self) -> None:
        """Those whose names lead where CRIU must not follow; what they lead to besides is up to `bound_sockets`.

        Those in other mount and network namespaces are entirely up to that module.
        """
        if not (self.unix_sockets and self.mounts.are_all):
            return
        patience, bound = socket_names.Patience(), unix_facts.bound(self.init)
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            root = os.open(f"/proc/{self.init}/root", os.O_PATH | os.O_CLOEXEC)
            stack.callback(os.close, root)
            view = socket_names.View.of(root, self.mounts.by(self.init).lines, 0)
            for inode, its in bound.items():
                status = self.unix_sockets.get(inode)
                if not status or not its.name.startswith("/"):
                    continue
                if link(f"/proc/{status.pid}/ns/mnt") != self.namespaces["mnt"]:
                    continue
                try:
                    socket_names.follow(view, its.name, patience)
                except socket_names.Astray as error:
                    self.note("socket-astray", f"{its.name} {error}", status)
                except OSError:
                    continue

    def device(self, status: Status, path: str, target: str, found: roots.Opened) -> None:
        major, minor = os.major(found.special), os.minor(found.special)
        if place := _pts(found):
            self.slaves.setdefault(place, (target, status))
        elif stat.S_ISCHR(found.mode) and (major, minor) == PTMX:
            index = watch_facts.fdinfo(path, "tty-index")
            if index:  # /dev/ptmx may be a device node by itself, outside every devpts
                self.masters.add((found.device if _shown(found.device) in self.mounts.terminals else 0, int(index)))
        else:
            kind = "char" if stat.S_ISCHR(found.mode) else "block"
            self.note("device", f"{kind} {major}:{minor} {target}", status)

    def is_lxcs(self, place: tuple[int, int] | None) -> bool:
        """Whether a pseudo-terminal is the console, or one of the ttys, that LXC gives a container.

        These move along, although LXC's monitor has their other ends (`terminals`), and a restored one is from the
        host's devpts.
        """
        ttys = self.mounts.within(self.namespaces["mnt"]).ttys
        return place is not None and (_shown(place[0]), place[1]) in ttys

    def watches(self, status: Status, path: str) -> None:
        for kind, shown in watch_facts.watches(path, status.pid, self.mounts.within(self.namespaces["mnt"])):
            self.note(f"watch-{kind}", shown, status)

    def still_waiting(self) -> None:
        """Processes wait for a disk, even a busy one, only for moments: one counts if it is waiting at every look."""
        waiting = self.waiting
        for _ in range(WAITS):
            if not waiting:
                return
            time.sleep(WAIT)
            waiting = [status for status in waiting if proc.state_of(status.pid) == "D"]
        for status in waiting:
            self.note("uninterruptible", status.name, status)

    def half_pairs(self, members: Collection[int]) -> None:
        """Terminals, UNIX sockets and pipes whose other end no process of the container has.

        A pipe with only one end is nothing unusual, as its other end may have been closed: so we check who has it.
        """
        for place, (target, status) in self.slaves.items():
            if not self.masters & {place, (0, place[1])} and not self.is_lxcs(place):
                self.note("terminal-outside", target, status)
        self.bound_sockets()
        for inode in sorted(unix_facts.outside(self.init, frozenset(self.unix_sockets)) if self.unix_sockets else ()):
            self.note("unix-outside", f"socket:[{inode}]", self.unix_sockets[inode])
        half = {target: status for target, (ends, status) in self.pipes.items() if ends != 3}
        for target, holder in proc.pipe_holders(half, members).items():
            self.note("pipe-outside", f"{target} to {holder}", half[target])


def _pts(found: roots.Opened) -> tuple[int, int] | None:
    """The devpts and the number of a pseudo-terminal's slave; None for any other file."""
    major, minor = os.major(found.special), os.minor(found.special)
    return (found.device, (major - PTS[0]) * 256 + minor) if stat.S_ISCHR(found.mode) and major in PTS else None


def _shown(device: int) -> str:
    """A file system's device as written in mountinfo."""
    return f"{os.major(device)}:{os.minor(device)}"
