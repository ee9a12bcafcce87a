# SPDX-License-Identifier: GPL-2.0-or-later
"""Processes identified by pid and start time, which no two processes share, and short-lived programs."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

PROC = Path("/proc")
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
LIMIT = 10.0  # seconds that a short-lived program gets
GRACE = 1.0  # seconds between SIGTERM and SIGKILL
_START = 19  # of `stat_fields`


class ProgramFailed(Exception):
    """A program could not be started, took too long or ended badly; the text says which and why."""


class Process(NamedTuple):
    """One run of a program: a pid is reused, a pid with its start time is not."""

    pid: int
    start: int  # see `start_time`

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """The process that has this pid now; None if there is none or it is a zombie."""
        try:
            fields = stat_fields(pid)
        except OSError:
            return None
        return None if fields[0] in (b"Z", b"X") else cls(pid, int(fields[_START]))

    @classmethod
    def at(cls, pid: int) -> Process:
        """The process that has this pid now, even a zombie; raises OSError if there is none."""
        return cls(pid, start_time(pid))

    @classmethod
    def current(cls) -> Process:
        """This process."""
        return cls.at(os.getpid())

    @classmethod
    def from_json(cls, data: Any) -> Process | None:
        """The reverse of `to_json`; None for anything else."""
        if not isinstance(data, dict):
            return None
        pid, start = data.get("pid"), data.get("start")
        if type(pid) is not int or type(start) is not int or not 1 < pid < 1 << 31:
            return None
        return cls(pid, start)

    def to_json(self) -> dict[str, int]:
        return self._asdict()

    def is_alive(self) -> bool:
        """Whether it is still running."""
        return Process.of(self.pid) == self

    def end(self, grace: float = GRACE) -> None:
        """Send SIGTERM, and SIGKILL `grace` seconds later, to this process and never to one that reuses its pid.

        It is waited for after either.
        """
        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if not self.is_alive():  # checked once the descriptor exists: from now on the two mean the same process
                return
            for number in (signal.SIGTERM, signal.SIGKILL):
                try:
                    signal.pidfd_send_signal(fd, number)
                except ProcessLookupError:
                    return
                poll = select.poll()
                poll.register(fd, select.POLLIN)
                if poll.poll(grace * 1000):
                    return
        finally:
            os.close(fd)


def stat_fields(pid: int) -> list[bytes]:
    """The fields of /proc/PID/stat from the third on (proc_pid_stat(5)): state, parent and so on. Raises OSError.

    The program's name before them is in brackets and may contain any character.
    """
    return (PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()


def start_time(pid: int) -> int:
    """When a process began, in clock ticks since boot: together with its pid this is unique until the next boot.

    Raises OSError.
    """
    return int(stat_fields(pid)[_START])


def began(pid: int) -> int | None:
    """As `start_time`; None if the process has ended."""
    with contextlib.suppress(OSError):
        return start_time(pid)
    return None


def with_command(argv: Sequence[str]) -> Iterator[Process]:
    """The processes that were started with exactly this command, with the program by name, and really are that program.

    Any user of this host and any container's root may give a process such a command line, and none of them may thereby
    get one ended or waited for. So it must be one of our own user, outside of containers, that executes the program's
    very file.
    """
    files = set(_files(argv[0]))
    for folder in PROC.iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(OSError, ValueError, IndexError):
                if _uid(folder) != os.geteuid() or not _is_beside_us(folder, "pid"):
                    # Its arguments are in its own memory, and a stranger's process can make whoever reads them wait for
                    # ever.
                    continue
                words = (folder / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
                if [Path(os.fsdecode(words[0])).name, *map(os.fsdecode, words[1:])] != list(argv):
                    continue
                if _executes(folder, argv[0], files) and (process := Process.of(int(folder.name))):
                    yield process


def _files(program: str) -> Iterator[tuple[int, int]]:
    """Device and inode of each file that this name can mean here."""
    for folder in ENVIRONMENT["PATH"].split(":"):
        with contextlib.suppress(OSError):
            found = Path(folder, program).stat()
            yield found.st_dev, found.st_ino


def _executes(folder: Path, program: str, files: set[tuple[int, int]]) -> bool:
    """By its file, which no other file system has; if an upgrade has replaced that meanwhile, by its path.

    A path means the same file for both of us only in our own mount namespace.
    """
    executed = (folder / "exe").stat()
    if (executed.st_dev, executed.st_ino) in files:
        return True
    path, _, end = str((folder / "exe").readlink()).rpartition(" (")
    known = {os.path.realpath(f"{each}/{program}") for each in ENVIRONMENT["PATH"].split(":")}
    return end == "deleted)" and path in known and _is_beside_us(folder, "mnt")


def _is_beside_us(folder: Path, kind: str) -> bool:
    """Whether it is in the same namespace as this process."""
    return (folder / "ns" / kind).readlink() == (PROC / "self/ns" / kind).readlink()


def _uid(folder: Path) -> int:
    """Its real uid (proc_pid_status(5)); its name, which it chooses itself, is in an earlier line."""
    (line,) = (each for each in (folder / "status").read_bytes().split(b"\n") if each.startswith(b"Uid:"))
    return int(line.split()[1])


def which(program: str) -> str | None:
    """Where a program is, None if it is not installed."""
    return shutil.which(program, path=ENVIRONMENT["PATH"])


def run(argv: Sequence[str], *, given: str = "", limit: float = LIMIT) -> str:
    """Run a program to its end and return its output; raises ProgramFailed.

    It gets `given` on stdin, an environment without anything of ours, and `limit` seconds.
    """
    try:
        done = subprocess.run(argv, input=given, capture_output=True, text=True, errors="replace", timeout=limit,
                              env=ENVIRONMENT, check=False, process_group=0)
    except FileNotFoundError:
        raise ProgramFailed(f"the program {argv[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise ProgramFailed(f"{' '.join(argv)} took more than {limit:g} s") from None
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[:500]
        raise ProgramFailed(f"{' '.join(argv)}: exit status {done.returncode}: {said or 'no output'}")
    return done.stdout
