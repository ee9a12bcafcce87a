# SPDX-License-Identifier: GPL-2.0-or-later
"""Gives a frozen container back if the program that froze it does not: because it was stopped, hangs or was killed.

The watchdog is a separate process, started before the freeze. It is in its own session, so that no Ctrl-Z, hang-up or
`kill` meant for that program reaches it, and in the root of the cgroup tree (see `apart`). It thaws

- when the freeze has lasted for its limit by the monotonic clock, and
- when that program has ended without taking its leave, provided that nobody else has the container's lock and
  the journal still has it as being dumped;

but not before CRIU has let go of the container, nor beside another start of it. Before the ownership token is offered,
its clock is stopped, and it reports whether it has thawed: from then on no clock decides. It stays until the offer is
on record and is then dismissed: a program killed between the two has offered nothing, and the journal says so.

The protocol is lines of JSON. From the program that freezes: a `Task`, `begins` before the freeze, `dad` (see
network.hush_dad) after it, `clock` to stop the clock, and `dismissed` or `left`. To it: `watching`, and in reply to
`clock` `thawed`, true or false.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import msgspec

from migrator.base import log, programs, standard_files
from migrator.base.process_id import Process
from migrator.base.run import Program, detached
from migrator.copies import second_start, thawing
from migrator.copies.thawing import Frozen
from migrator.criu import apart, criu_dump
from migrator.errors import MigratorError
from migrator.errors.memory import WatchdogFailed
from migrator.errors.this_host import JournalBroken
from migrator.host import lxc, network
from migrator.record import container_lock
from migrator.record.detail import Still
from migrator.record.journal import Journal
from migrator.record.migration_paths import locked
from migrator.record.states import Role, State
from migrator.record.transactions import HURRY

FOR_EVER = 1e6  # seconds
POLL = 0.2  # seconds between two checks of whether CRIU has let go, or the container was frozen again
ANSWER_LIMIT = 60.0  # seconds that a watchdog may take to answer; all it ever does is thaw
LINE_LIMIT = 1 << 20  # bytes


@dataclasses.dataclass(frozen=True)
class Task:
    """What a watchdog is told."""

    frozen: Frozen
    attempt: int  # the number of the dump in the journal
    images: tuple[str, ...]  # directories that CRIU may dump into
    limit: float  # seconds
    journal: str  # its path
    locks: str = str(container_lock.LOCKS)  # the directory of the containers' locks
    program: Process = dataclasses.field(default_factory=Process.current)  # the one that freezes it

    def to_json(self) -> str:
        return json.dumps({
            "name": self.frozen.name, "lxcpath": str(self.frozen.lxcpath),
            "frozen": msgspec.to_builtins(self.frozen.recorded()),
            "migration": self.frozen.migration, "attempt": self.attempt, "images": self.images, "limit": self.limit,
            "journal": self.journal, "locks": self.locks, "program": self.program,
        })

    @classmethod
    def from_json(cls, text: str) -> Self:
        data = json.loads(text)
        frozen = Frozen.on_record(data["migration"], data["name"], Path(data["lxcpath"]),
                                  msgspec.convert(data["frozen"], Still))
        return cls(frozen, data["attempt"], tuple(data["images"]), data["limit"], data["journal"],
                   data["locks"], Process(*data["program"]))


class Watchdog:
    """The watchdog as seen by the program that freezes."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._program: Program | None = None

    def start(self) -> None:
        """Start it and return once it is watching. Raises WatchdogFailed."""
        self._program = detached([sys.executable, "-I", "-m", __name__, container_lock.WATCHDOG],
                                 stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._say(self._task.to_json())
        answer = self._answer() or {}
        for trouble in answer.get("trouble", []):
            log.verbose(f"The watchdog may be ended along with this program: {trouble}")
        if not answer.get("watching"):
            self._program.kill()
            raise WatchdogFailed(reason=self._program.error_output().decode(errors="replace").strip() or "no answer")

    def begins(self) -> None:
        """The container is about to be frozen: the limit counts from here."""
        self._say(json.dumps({"begins": True}))

    def note_dad(self, dad: dict[str, str]) -> None:
        """It has been frozen; `dad` is what its interfaces had set before."""
        self._say(json.dumps({"dad": dad}))

    def stop_clock(self) -> bool:
        """From now on it thaws only if this program ends; returns whether it has thawed, or may have."""
        self._say(json.dumps({"clock": "stopped"}))
        return bool(self._answer() != {"thawed": False})

    def dismiss(self) -> None:
        """From now on it does nothing; safe to repeat."""
        program, self._program = self._program, None
        if program is not None:
            self._say(json.dumps({"dismissed": True}), program)
            program.kill()

    def leave(self) -> None:
        """This program could not give the container back and lives on: from now on only the journal decides.

        Safe to repeat.
        """
        program, self._program = self._program, None
        if program is not None:
            self._say(json.dumps({"left": True}), program)
            with contextlib.suppress(OSError):
                program.stdin.close()

    def _say(self, line: str, program: Program | None = None) -> None:
        if program := program or self._program:
            with contextlib.suppress(OSError):  # it has ended, which `dismiss` finds out
                program.stdin.write(f"{line}\n".encode())
                program.stdin.flush()

    def _answer(self, program: Program | None = None) -> Any:
        """None if it does not answer."""
        if program := program or self._program:
            ready, _, _ = select.select([program.stdout], [], [], ANSWER_LIMIT)
            line = program.stdout.readline(LINE_LIMIT) if ready else b""
            return json.loads(line) if line.endswith(b"\n") else None
        return None


# --- the process ----------------------------------------------------------------------------------------------


class Watch:
    """What the process does. `lines(seconds)` returns the next line, "" at the end, None if none came within `seconds`.
    """

    def __init__(self, task: Task, lines: Callable[[float], str | None], clock: Callable[[], float],
                 answer: Callable[[bool], None]) -> None:
        """`answer` tells the program whether the container was thawed."""
        self.task = task
        self.frozen = task.frozen
        self._lines = lines
        self._answer = answer
        self._clock = clock
        self._end: float | None = None  # on `clock`, set once the freeze has begun
        self._may_be_offered = False  # the program has stopped the clock to offer the token, or may get to that

    def run(self) -> bool:
        """Watch until dismissed, or until abandoned and no longer needed; returns whether it has thawed."""
        thawed = False
        while True:
            line = self._lines(self._wait(thawed))
            if line == "":
                return self._left_alone() or thawed
            if line is not None:
                data = json.loads(line)
                if data.get("dismissed"):
                    return thawed
                if data.get("begins"):
                    self._end = self._clock() + self.task.limit
                if data.get("left"):
                    self._may_be_offered = True
                if data.get("clock"):
                    if not thawed:
                        self._end, self._may_be_offered = None, True
                    self._answer(thawed)
                self.frozen = dataclasses.replace(self.frozen, dad=data.get("dad", self.frozen.dad))
            # A program that carries on after a stop may freeze it again.
            elif self._end is not None and (not thawed or self._is_frozen()):
                with contextlib.suppress(MigratorError, OSError):  # then try again: nobody else will
                    self._thaw()
                    thawed = True

    def _wait(self, thawed: bool) -> float:
        """Seconds for which there is nothing to do unless something happens."""
        if self._end is None:
            return FOR_EVER
        return POLL if thawed else max(POLL, self._end - self._clock())

    def _left_alone(self) -> bool:
        """The program that froze it has ended; whoever has the lock now takes care of the container first.

        A full disk, an unreadable journal or a shortage of file descriptors may have passed by the next try; until then
        the container stays frozen. Once the limit has passed, it is thawed even if the journal cannot be read, provided
        that nobody can have offered the token: that program had not got that far and nobody else has held the lock
        since.
        """
        untouched = not self._may_be_offered
        while True:
            with contextlib.suppress(MigratorError, OSError):
                if not self._must_run(untouched):
                    return False
                if not self._criu_is_at_work():  # someone who takes the container over meanwhile waits for CRIU too
                    # But not for this: whoever finds this process holding the lock waits until it ends.
                    self._refuse_beside()
                    with locked(self.frozen.name, Path(self.task.locks), lxcpath=self.frozen.lxcpath) as last:
                        untouched = untouched and last <= {self.task.program, Process.current()}
                        if self._must_run(untouched):
                            self._thaw()
                            return True
            time.sleep(POLL)

    def _must_run(self, untouched: bool) -> bool:
        """Whether it is to be thawed, by the journal or else by the clock; raises MigratorError, OSError."""
        try:
            return self._is_still_being_dumped()
        except (MigratorError, OSError):
            if untouched and self._end is not None and self._clock() >= self._end:
                return True
            raise

    def _is_still_being_dumped(self) -> bool:
        """Whether the journal has nothing later than that dump, so that nobody was offered the token since.

        If the journal's disk is gone, no new journal is created. One that someone has created there since knows
        nothing, so it counts as unreadable. Only migrations that have ended are forgotten, and their container is not
        frozen.
        """
        path = Path(self.task.journal)
        path.stat()
        with Journal(path, HURRY) as journal:
            found = journal.by_id(self.frozen.migration, Role.SOURCE)
        if found is not None:
            return found.state is State.DUMPING and found.handover.attempt == self.task.attempt
        if self.frozen.is_here() and lxc.is_held(self.frozen.cgroup):
            raise JournalBroken(path=path, reason=f"it does not know migration {self.frozen.migration}")
        return False

    def _criu_is_at_work(self) -> bool:
        return bool(criu_dump.processes(Path(folder) for folder in self.task.images))

    def _refuse_beside(self) -> None:
        """Raise StartFailed while another start of it is alive, made by someone who took it for stopped."""
        if self.frozen.is_here():
            second_start.refuse(self.frozen, ask_lxc=False)  # its monitor may never answer

    def _is_frozen(self) -> bool:
        with contextlib.suppress(OSError):  # it is checked again
            return self.frozen.is_here() and lxc.is_frozen(self.frozen.cgroup)
        return False

    def _thaw(self) -> None:
        """Thaw once CRIU has finished: it injects code into the tasks it dumps, and removes it before they may run."""
        while self._criu_is_at_work():
            time.sleep(POLL)
        self._refuse_beside()
        if self.frozen.is_here():
            thawing.thaw(self.frozen)
        elif self.frozen.ports:  # it has ended meanwhile, but the rules that silence its veths would stay
            network.hear(self.frozen.migration)


def main() -> int:
    standard_files.open_missing()
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    log.level = log.Level.QUIET
    lines = Lines(sys.stdin.fileno())
    task = Task.from_json(lines(ANSWER_LIMIT) or "null")
    with contextlib.suppress(MigratorError):  # load what this needs before the freeze
        lxc.Container(task.frozen.name, task.frozen.lxcpath)
    programs.learn()
    print(json.dumps({"watching": True, "trouble": apart.stand(os.getpid())}), flush=True)
    Watch(task, lines, time.monotonic, _answer).run()
    return 0


def _answer(thawed: bool) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more
        print(json.dumps({"thawed": thawed}), flush=True)


class Lines:
    """Lines read from a file descriptor, each with a time limit."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._read = b""

    def __call__(self, wait: float) -> str | None:
        """The next line, "" at the end, None if none came within `wait` seconds."""
        end = time.monotonic() + wait
        while b"\n" not in self._read:
            ready, _, _ = select.select([self._fd], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                return None
            more = os.read(self._fd, 1 << 16)
            if not more:
                return ""
            self._read += more
        line, _, self._read = self._read.partition(b"\n")
        return line.decode()


if __name__ == "__main__":
    sys.exit(main())
