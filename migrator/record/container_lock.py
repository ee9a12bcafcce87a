# SPDX-License-Identifier: GPL-2.0-or-later
"""Who works on a container at this moment: the process that has its lock, and how far it says it has come.

A lock file holds `PID STARTED COMMAND LXCPATH` on its first line, and on the second what `publish` was told, as JSON.
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

from migrator.base import names
from migrator.errors import Interrupted
from migrator.errors.this_host import HolderUnknown
from migrator.host import processes, roots

LOCKS = Path("/run/migrator/lock")
SERVE = "serve"  # what answers another host is called with
WATCHDOG = "watchdog"  # what a watchdog is called with: it has the lock for the moment that a thaw takes
ABORT = signal.SIGUSR1  # what `migrator abort` sends: as a first Ctrl-C, however often it comes (migrator/__main__.py)
_PROGRESS_WIDTH = 200  # bytes of the second line: each write replaces all of it

_interrupted: list[Interrupted] = []
_blocks = 0  # of `held_back`, at this moment
_held: list[tuple[int, int]] = []  # of this process: the descriptor of each lock, and where its second line begins


@dataclasses.dataclass(frozen=True)
class Holder:
    """A process that has the lock on a container."""

    pid: int
    started: int  # clock ticks from boot to its start (proc_pid_stat(5)): tells it from a later one of that id
    command: str  # what it was called with: migrate, serve, ...; "?" while it has not said so
    progress: dict[str, Any] = dataclasses.field(default_factory=dict)  # `what`, `bytes`, `total` (or null)
    lxcpath: str = ""  # of the container, as it was spelled; "" where that is not known
    file: Path = dataclasses.field(default=Path(), compare=False)  # that is locked

    def works_on(self, lxcpath: Path) -> bool:
        """Whether that may be the container in this LXC path: the lock of an older version is one for all of a name."""
        return not self.lxcpath or names.same_path(Path(self.lxcpath), lxcpath)

    def to_json(self) -> dict[str, Any]:
        return {"pid": self.pid, "command": self.command, "progress": self.progress or None}


@contextlib.contextmanager
def recorded(fd: int, lxcpath: Path | None = None) -> Iterator[tuple[int, int] | None]:
    """Write into the lock file `fd`, which this process has locked, who that is.

    Where that cannot be written, as /run is full, the lock holds all the same. Yields who had it last, as
    `this_process` has it; None where that is not on record, or nobody had.
    """
    last = None
    with contextlib.suppress(OSError, ValueError):
        pid, started, _command = os.pread(fd, 100, 0).split(maxsplit=2)
        last = int(pid), int(started)
    where = "" if lxcpath is None or "\n" in str(lxcpath) else f" {lxcpath}"
    head = os.fsencode(f"{os.getpid()} {start_time(os.getpid())} {' '.join(sys.argv[1:2]) or '-'}{where}\n")
    with contextlib.suppress(OSError):
        os.ftruncate(fd, 0)
        os.pwrite(fd, head, 0)
    _held.append((fd, len(head)))
    try:
        yield last
    finally:
        _held.remove((fd, len(head)))


def holds() -> bool:
    """Whether this process has a lock."""
    return bool(_held)


def this_process() -> tuple[int, int]:
    """What `Holder.pid` and `Holder.started` are where this process has a lock."""
    return os.getpid(), start_time(os.getpid())


def interrupted(error: Interrupted) -> None:
    """A signal has asked this process to stop, and `error` is raised for it: now, or see `held_back`."""
    _interrupted.append(error)


@contextlib.contextmanager
def held_back(*, raised: bool = True) -> Iterator[None]:
    """What is done in the block gives a container back: a first signal by hand stops it at its end only.

    It is raised then, if `raised`, and unless something else comes out of the block. A second Ctrl-C ends the process
    at once. Blocks may stand within each other; the outermost counts.
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
    """Whether a first signal by hand has to wait."""
    return _blocks > 0


def check_interrupted() -> None:
    """Raises what a signal has raised, should it have been lost on its way through somebody else's code."""
    if _interrupted:
        raise _interrupted[0]


def publish(what: str, done: int, total: int) -> None:
    """Let others see how many bytes of a transfer are there; `total` is 0 where it is not known."""
    line = json.dumps({"what": what, "bytes": done, "total": total or None})
    _write_second_line(f"{line:<{_PROGRESS_WIDTH}}\n".encode())


def publish_end() -> None:
    """The transfer that `publish` told of is over."""
    _write_second_line(b" " * _PROGRESS_WIDTH)


def _write_second_line(text: bytes) -> None:
    for fd, at in _held:
        with contextlib.suppress(OSError):  # /run may be full; a transfer does not end for that
            os.pwrite(fd, text, at)


def files(name: str, lxcpath: Path) -> list[str]:
    """The names of the files that are locked for a container: by the LXC path that is its own, and by that folder.

    Both, as one folder may be spelled in several ways (`names.same_path`), and as one path may be a folder of the root
    file system now, and in a moment that of a disk that is mounted there.
    """
    found = [names.in_path(name, lxcpath)]
    with contextlib.suppress(OSError):
        folder = lxcpath.stat()
        found.append(f"{name}@{folder.st_dev}:{folder.st_ino}")
    return found


def of(name: str, lxcpath: Path, folder: Path | None = None) -> Holder | None:
    """Who has the container's lock now; None when nobody has."""
    folder = folder or LOCKS
    for file in files(name, lxcpath):
        if found := of_file(folder / file):
            return found
    older = of_file(folder / name)  # a command of an older version
    return older if older and older.works_on(lxcpath) else None


def of_file(path: Path) -> Holder | None:
    """Who has locked this file alone.

    The kernel says who (/proc/locks, proc_locks(5)): to try the lock would keep others off it meanwhile. It names the
    file by its inode, which a file of another device may have too, and the device not always as stat(2) does (btrfs):
    so it must be a process that has this file open. Any user can lock a file of that number on a file system of his
    own, which refuses, or never answers: so it must be one of our own user's, and no file system is asked.
    """
    try:
        file = roots.at(path)
    except FileNotFoundError:
        return None
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if words[1:4] == ["FLOCK", "ADVISORY", "WRITE"] and words[5].rsplit(":", 1)[1] == str(file.inode):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ends at this moment
                if _has_open(int(words[4]), file):
                    return _described(int(words[4]), path)
    return None


def _has_open(pid: int, file: roots.Root) -> bool:
    if int(processes.status(pid, b"Uid")[0]) != os.geteuid():
        return False
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile, or it cannot be told
            if roots.at(descriptor) == file:
                return True
    return False


def _described(pid: int, file: Path) -> Holder:
    """The holder, with what it has written about itself into its lock file so far."""
    started = start_time(pid)
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
    """Send a process what a Ctrl-C is, if it still is the one that has the lock, stopped or not; safe to repeat.

    Raises HolderUnknown where it does not listen to that, as no command of ours would.
    """
    with contextlib.suppress(ProcessLookupError), _pidfd(holder.pid) as fd:
        if not _is_still(holder):
            return  # it has ended, and what has its id now was never meant
        if not _catches(holder.pid, ABORT):
            raise HolderUnknown(name=name, pid=holder.pid, command=holder.command)
        signal.pidfd_send_signal(fd, ABORT)
        signal.pidfd_send_signal(fd, signal.SIGCONT)  # one that was stopped (Ctrl-Z) hears nothing before


def go_on(holder: Holder) -> None:
    """Have a process go on that was stopped (Ctrl-Z), if it still is the one that has the lock; safe to repeat."""
    with contextlib.suppress(ProcessLookupError), _pidfd(holder.pid) as fd:
        if _is_still(holder):
            signal.pidfd_send_signal(fd, signal.SIGCONT)


def _is_still(holder: Holder) -> bool:
    """Whether it has the lock now."""
    now = of_file(holder.file)
    return now is not None and (now.pid, now.started) == (holder.pid, holder.started)


def has_ended(holder: Holder, limit: float) -> bool:
    """Whether a process ends within `limit` seconds."""
    try:
        with _pidfd(holder.pid) as fd:
            if start_time(holder.pid) != holder.started:
                return True
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            return bool(poll.poll(limit * 1000))
    except (FileNotFoundError, ProcessLookupError):
        return True


@contextlib.contextmanager
def _pidfd(pid: int) -> Iterator[int]:
    """A process by a descriptor (pidfd_open(2)), which never comes to mean another one; raises ProcessLookupError."""
    fd = os.pidfd_open(pid)
    try:
        yield fd
    finally:
        os.close(fd)


def start_time(pid: int) -> int:
    """When a process began, in clock ticks since boot: with its id it means one process for ever. Raises OSError.

    Field 22 of proc_pid_stat(5); the program's name before it is in brackets and may hold any character.
    """
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])


def began(pid: int) -> int | None:
    """The same; None where it has ended."""
    with contextlib.suppress(OSError):
        return start_time(pid)
    return None


def _catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal (SigCgt in proc_pid_status(5))."""
    (mask,) = processes.status(pid, b"SigCgt")
    return bool(int(mask, 16) >> (number - 1) & 1)
