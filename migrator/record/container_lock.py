# SPDX-License-Identifier: GPL-2.0-or-later
"""Who is working on a container: the process that has its lock, and how far it reports to have come.

The first line of a lock file is `PID STARTED COMMAND LXCPATH`, the second what `publish` was told, as JSON.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from migrator.base import names, process_id
from migrator.base.process_id import Process
from migrator.errors import Interrupted
from migrator.errors.this_host import HolderUnknown
from migrator.host import processes, roots

LOCKS = Path("/run/migrator/lock")
SERVE = "serve"  # the command name of a process that answers another host
WATCHDOG = "watchdog"  # the command name of a watchdog, which holds the lock only for the moment that a thaw takes
# What `migrator abort` sends; like a first Ctrl-C, however often it arrives (migrator/__main__.py)
ABORT = signal.SIGUSR1
_PROGRESS_WIDTH = 200  # bytes of the second line: each write replaces all of it

_interrupted: list[Interrupted] = []
_blocks = 0  # how many `held_back` blocks are active
# This process's locks: the file descriptor of each, and the offset of its second line.
_held: list[tuple[int, int]] = []


@dataclasses.dataclass(frozen=True)
class Holder:
    """A process that has the lock on a container."""

    pid: int
    # Its start in clock ticks since boot (proc_pid_stat(5)): tells it from a later process with the same pid.
    started: int
    command: str  # the command it was started as: migrate, serve, ...; "?" until it has said so
    progress: dict[str, Any] = dataclasses.field(default_factory=dict)  # `what`, `bytes`, `total` (or null)
    lxcpath: str = ""  # of the container, as that process spelled it; "" if unknown
    file: Path = dataclasses.field(default=Path(), compare=False)  # the file that is locked

    @property
    def process(self) -> Process:
        return Process(self.pid, self.started)

    def works_on(self, lxcpath: Path) -> bool:
        """Whether that may be the container in this LXC path; an older version's lock is for all containers of a name.
        """
        return not self.lxcpath or names.same_path(Path(self.lxcpath), lxcpath)

    def to_json(self) -> dict[str, Any]:
        return {"pid": self.pid, "command": self.command, "progress": self.progress or None}


@contextlib.contextmanager
def recorded(fd: int, lxcpath: Path | None = None) -> Iterator[Process | None]:
    """Write who we are into the lock file `fd`, which this process has locked.

    If that fails because /run is full, the lock holds all the same. Yields who held the lock last; None if that is
    not on record or nobody did.
    """
    last = None
    with contextlib.suppress(OSError, ValueError):
        pid, started, _command = os.pread(fd, 100, 0).split(maxsplit=2)
        last = Process(int(pid), int(started))
    where = "" if lxcpath is None or "\n" in str(lxcpath) else f" {lxcpath}"
    me = Process.current()
    head = os.fsencode(f"{me.pid} {me.start} {' '.join(sys.argv[1:2]) or '-'}{where}\n")
    with contextlib.suppress(OSError):
        os.ftruncate(fd, 0)
        os.pwrite(fd, head, 0)
    _held.append((fd, len(head)))
    try:
        yield last
    finally:
        _held.remove((fd, len(head)))


def holds() -> bool:
    """Whether this process holds a lock."""
    return bool(_held)


def interrupted(error: Interrupted) -> None:
    """Raise `error` because a signal has asked this process to stop: at once, or later if `held_back`."""
    _interrupted.append(error)


@contextlib.contextmanager
def held_back(*, raised: bool = True) -> Iterator[None]:
    """For a block that gives a container back: a first signal sent by hand stops it only at its end.

    The signal's exception is raised then, if `raised` and unless another one comes out of the block. A second Ctrl-C
    ends the process at once. Blocks may be nested; the outermost counts.
    """
    global _blocks
    before = len(_interrupted)
    _blocks += 1
    try:
        yield
    finally:
        _blocks -= 1
    if raised and not _blocks and _interrupted[before:]:
        raise _interrupted[before]


def is_held_back() -> bool:
    """Whether a first signal sent by hand has to wait."""
    return _blocks > 0


def check_interrupted() -> None:
    """Raise what a signal has raised, in case third-party code swallowed it."""
    if _interrupted:
        raise _interrupted[0]


def publish(what: str, done: int, total: int) -> None:
    """Let others see how many bytes have been transferred; `total` is 0 if unknown."""
    line = json.dumps({"what": what, "bytes": done, "total": total or None})
    _write_second_line(f"{line:<{_PROGRESS_WIDTH}}\n".encode())


def publish_end() -> None:
    """The transfer that `publish` reported on is over."""
    _write_second_line(b" " * _PROGRESS_WIDTH)


def _write_second_line(text: bytes) -> None:
    for fd, at in _held:
        with contextlib.suppress(OSError):  # /run may be full; a transfer does not fail because of that
            os.pwrite(fd, text, at)


def files(name: str, lxcpath: Path) -> list[str]:
    """The names of the files to lock for a container: one by the spelling of its LXC path, one by the directory itself.

    It takes both, because one directory may be spelled in several ways (`names.same_path`), and because one path may be
    a directory of the root file system now and of a newly mounted disk a moment later.
    """
    found = [names.in_path(name, lxcpath)]
    with contextlib.suppress(OSError):
        folder = lxcpath.stat()
        found.append(f"{name}@{folder.st_dev}:{folder.st_ino}")
    return found


def of(name: str, lxcpath: Path, folder: Path | None = None) -> Holder | None:
    """Who holds the container's lock now; None if nobody does."""
    folder = folder or LOCKS
    for file in files(name, lxcpath):
        if found := of_file(folder / file):
            return found
    older = of_file(folder / name)  # the lock of a command of an older version
    return older if older and older.works_on(lxcpath) else None


def of_file(path: Path) -> Holder | None:
    """Who holds the lock on this one file.

    We ask the kernel (/proc/locks, proc_locks(5)), because trying to take the lock would keep others off it meanwhile.
    The kernel names the file by its inode, a number that a file of another device may have too, and its device not
    always in the way that stat(2) does (btrfs). So the process must also have this very file open. Any user can lock a
    file with that inode number on a file system of their own, which may refuse access or hang. So the process must also
    be one of our own user, and no file system is asked.
    """
    try:
        file = roots.at(path)
    except FileNotFoundError:
        return None
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if words[1:4] == ["FLOCK", "ADVISORY", "WRITE"] and words[5].rsplit(":", 1)[1] == str(file.inode):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it is just ending
                if _has_open(int(words[4]), file):
                    return _described(int(words[4]), path)
    return None


def _has_open(pid: int, file: roots.Root) -> bool:
    if int(processes.status(pid, b"Uid")[0]) != os.geteuid():
        return False
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile, or it cannot be determined
            if roots.at(descriptor) == file:
                return True
    return False


def _described(pid: int, file: Path) -> Holder:
    """The holder, with what it has written about itself into its lock file so far."""
    started = process_id.start_time(pid)
    first, _, second = os.fsdecode(file.read_bytes()).partition("\n")
    words = first.split(maxsplit=3)
    if words[:2] != [str(pid), str(started)] or len(words) < 3:
        return Holder(pid, started, "?", file=file)
    progress: dict[str, Any] = {}
    with contextlib.suppress(ValueError):
        progress = json.loads(second)
    command = os.fsencode(words[2]).decode(errors="replace")
    return Holder(pid, started, command, progress, "".join(words[3:]), file)


def ask_to_stop(name: str, holder: Holder) -> None:
    """Send a process the equivalent of Ctrl-C, even if it is stopped, provided it still holds the lock; safe to repeat.

    Raises HolderUnknown if it has no handler for that signal, which all commands of ours have.
    """
    with contextlib.suppress(ProcessLookupError), _pidfd(holder.pid) as fd:
        if not _is_still(holder):
            return  # it has ended, and the process that has its pid now was never meant
        if not _catches(holder.pid, ABORT):
            raise HolderUnknown(name=name, pid=holder.pid, command=holder.command)
        signal.pidfd_send_signal(fd, ABORT)
        signal.pidfd_send_signal(fd, signal.SIGCONT)  # a stopped process (Ctrl-Z) handles no signal before this


def go_on(holder: Holder) -> None:
    """Continue a process that was stopped (Ctrl-Z), provided it still holds the lock; safe to repeat."""
    with contextlib.suppress(ProcessLookupError), _pidfd(holder.pid) as fd:
        if _is_still(holder):
            signal.pidfd_send_signal(fd, signal.SIGCONT)


def _is_still(holder: Holder) -> bool:
    """Whether it holds the lock now."""
    now = of_file(holder.file)
    return now is not None and now.process == holder.process


def has_ended(holder: Holder, limit: float) -> bool:
    """Whether a process ends within `limit` seconds."""
    try:
        with _pidfd(holder.pid) as fd:
            if Process.at(holder.pid) != holder.process:
                return True
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            return bool(poll.poll(limit * 1000))
    except (FileNotFoundError, ProcessLookupError):
        return True


@contextlib.contextmanager
def _pidfd(pid: int) -> Iterator[int]:
    """A process as a file descriptor (pidfd_open(2)), which never comes to mean another process.

    Raises ProcessLookupError.
    """
    fd = os.pidfd_open(pid)
    try:
        yield fd
    finally:
        os.close(fd)


def _catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal (SigCgt in proc_pid_status(5))."""
    (mask,) = processes.status(pid, b"SigCgt")
    return bool(int(mask, 16) >> (number - 1) & 1)
