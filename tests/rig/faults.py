# SPDX-License-Identifier: GPL-2.0-or-later
"""One column of the fault matrix: a container for each step of a migration, all of them struck by the same fault.

`Column.run` makes a guest for each record of the journals, lets `migrator migrate` come to that record and holds it
there (tests/rig/pausing.py), strikes, lets all of them go on, heals with what `migrator status` names, and proves what
has become of each.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from harness.rig import LXC_HOSTS, Outcome, Rig, Running, wait_for
from tests.rig import fault_guests
from tests.rig.fault_guests import Look, Watch, host_root
from tests.rig.fault_steps import MIGRATE, PAUSES, Step

AT_ONCE = 5  # migrations that work at the same time; those that are held do not count
# Seconds: they end what hangs, also on a machine that stands still for a while.
REACH_LIMIT = 600.0  # until a migration has come to its step
END_LIMIT = 900.0  # until every migrate has ended after the fault
HEAL_LIMIT = 900.0  # until the last commands that heal have begun
CLIENT_LIMIT = 600.0
COMMANDS_MAX = 3  # that may be needed to heal one
BUSY = 16
CLIENTS = Path(__file__).with_name("talk_clients.py")
REPORT = "/tmp/talk.json"


@dataclasses.dataclass
class Guest:
    """A container that is on its way: which step it is held at, and what has become of it."""

    step: Step
    name: str
    address: str
    start: str = ""
    count: int = 0
    running: Running | None = None
    outcome: Outcome | None = None  # of `migrator migrate`
    then: tuple[str, str] = ("", "")  # how its processes were on both hosts before it was healed
    commands: list[str] = dataclasses.field(default_factory=list)  # that healed it
    at_last: str = ""  # the host that it runs on
    problems: list[str] = dataclasses.field(default_factory=list)

    @property
    def cell(self) -> str:
        """What the table says."""
        if self.problems:
            return "WRONG: " + "; ".join(self.problems)
        end = "moved" if self.at_last == LXC_HOSTS[1] else "back"
        if not self.commands:
            return end
        here, there = self.then
        was = "runs there" if there == "runs" else "frozen" if here == "frozen" else "runs on"
        return f"{was}, then {end}"


@dataclasses.dataclass(frozen=True)
class Fault:
    """What strikes while all are held. `strike` may let them go itself; the fault is over when it returns."""

    name: str
    strike: Callable[[Column], None]
    options: tuple[str, ...] = ()  # of `migrator migrate`


class Column:
    """All guests of one fault; `moment` is `after` the record is made or `before`."""

    def __init__(self, rig: Rig, fault: Fault, steps: Sequence[Step], moment: str) -> None:
        self.rig = rig
        self.fault = fault
        self.moment = moment
        self.guests = [Guest(step, f"m{n:02d}", f"10.0.3.{100 + n}") for n, step in enumerate(steps)]
        self._running = contextlib.ExitStack()

    def run(self) -> list[Guest]:
        """Do all of it; `problems` of the guests tell what was not as it must be."""
        fault_guests.make(self.rig, {guest.name: guest.address for guest in self.guests})
        with self._running, self._clients(), Watch(self.rig, self.guests) as watch:
            self._note_starts()
            self._bring_to_steps()
            self._look_on()
            self.fault.strike(self)
            self.release()
            self.wait_for_ends()
            self._heal()
            self._prove()
        assert watch.looks > 20, "nobody has watched"
        for guest in self.guests:
            if guest.name in watch.twice:
                guest.problems.append("two copies ran at once")
        return self.guests

    # --- up to the fault ---

    @contextlib.contextmanager
    def _clients(self) -> Iterator[None]:
        program = "/tmp/talk_clients.py"
        self.rig.put("client", program, CLIENTS.read_text())
        self.rig.exec("client", "rm", "-f", REPORT)
        addresses = [guest.address for guest in self.guests]
        with self.rig.start("client", "python3", program, REPORT, *addresses) as running:
            wait_for(lambda: running.process.poll() is not None or self._all_answered(), "every client has an answer",
                     CLIENT_LIMIT)
            assert running.process.poll() is None, running.stderr
            yield

    def _reports(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = json.loads(self.rig.sh("client", f"cat {REPORT} 2>/dev/null || echo '{{}}'"))
        return found

    def _all_answered(self) -> bool:
        reports = self._reports()
        return len(reports) == len(self.guests) and all(each["answers"] for each in reports.values())

    def _note_starts(self) -> None:
        found: list[dict[str, Any]] = []

        def all_count() -> bool:  # the last of them may only just have been started
            found[:] = fault_guests.probe(self.rig, LXC_HOSTS[0], self.guests, quick=True)
            return all(each["intact"] for each in found)

        wait_for(all_count, "every guest counts")
        for guest, each in zip(self.guests, found, strict=True):
            guest.start, guest.count = each["start"], each["count"]

    def _bring_to_steps(self) -> None:
        for guest in self.guests:
            step = guest.step
            wish = host_root(self.rig, step.host) / PAUSES[1:] / guest.name
            wish.write_text(f"{self.moment} {step.role} {step.step} {step.phase} {step.number}")
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(self._bring, self.guests))

    def _bring(self, guest: Guest) -> None:
        running = self.rig.start(LXC_HOSTS[0], *MIGRATE, guest.name, *self.fault.options)
        guest.running = self._running.enter_context(running)
        reached = host_root(self.rig, guest.step.host) / PAUSES[1:] / f"{guest.name}.reached"
        end = time.monotonic() + REACH_LIMIT
        while not reached.exists():
            ended = guest.running.process.poll() is not None
            if ended or time.monotonic() > end:
                how = str(guest.running.wait()) if ended else f"not in {REACH_LIMIT:g} s"
                guest.problems.append(f"it never came to this step: {how}")
                return
            time.sleep(0.05)

    def _look_on(self) -> None:
        """Somebody types `migrator status` meanwhile; it must not touch what the others' journals have."""
        for host in LXC_HOSTS:
            self.rig.migrator(host, "status", "--all").expect(0)

    # --- after it ---

    def release(self) -> None:
        """Let all of them go on."""
        for host in LXC_HOSTS:
            self.rig.sh(host, f"rm -f {PAUSES}/*")

    def wait_for_ends(self) -> None:
        """Every `migrator migrate` ends by itself."""
        end = time.monotonic() + END_LIMIT
        for guest in self.guests:
            if guest.running and not guest.outcome:
                try:
                    guest.outcome = guest.running.wait(max(0.1, end - time.monotonic()))
                except subprocess.TimeoutExpired:
                    guest.problems.append(f"migrate has not ended after {END_LIMIT:g} s")

    def _heal(self) -> None:
        """With what `migrator status` names, again where something is still busy, until nothing is unfinished."""
        look = Look(self.rig)
        by_name = {guest.name: guest for guest in self.guests}
        for guest in self.guests:
            guest.then = look.at(guest)
        end = time.monotonic() + HEAL_LIMIT
        with ThreadPoolExecutor(AT_ONCE) as pool:
            while waiting := self._next_commands():
                late = time.monotonic() > end
                stuck = [name for name in waiting if late or len(by_name[name].commands) == COMMANDS_MAX]
                for name in stuck:
                    by_name[name].problems.append(f"it is not healed, next would be: {waiting[name][1]}")
                if stuck:
                    return
                outcomes = list(pool.map(self._run, waiting.values()))
                for name, outcome in zip(waiting, outcomes, strict=True):
                    guest = by_name[name]
                    if outcome.status != BUSY:
                        guest.commands.append(waiting[name][1])
                    if outcome.status not in (0, BUSY):
                        guest.problems.append(f"what status named has failed: {outcome}")
                if any(outcome.status == BUSY for outcome in outcomes):
                    time.sleep(1)

    def _next_commands(self) -> dict[str, tuple[str, str]]:
        """For each migration that has not ended: where to type what."""
        found: dict[str, tuple[str, str]] = {}
        for host in reversed(LXC_HOSTS):  # what the source says counts: it knows more
            for each in self.rig.migrator(host, "status", "--json").expect(0).json["migrations"]:
                command, _, place = each["next"].partition("   (on ")
                found[each["name"]] = (place.rstrip(")") or host, command)
        return found

    def _run(self, what: tuple[str, str]) -> Outcome:
        host, command = what
        program, *words = command.split()
        assert program == "migrator", what
        return self.rig.migrator(host, *words, "--json")

    # --- the proof ---

    def _prove(self) -> None:
        self._prove_one_runs()
        for host in LXC_HOSTS:
            here = [guest for guest in self.guests if guest.at_last == host]
            for guest, found in zip(here, fault_guests.probe(self.rig, host, here), strict=True):
                if not (found["intact"] and found["start"] == guest.start and found["count"] > guest.count):
                    guest.problems.append(f"not intact: {found}; it was start {guest.start}, count {guest.count}")
        self._prove_it_stood_still()
        self._prove_connections()
        self._prove_nothing_left()

    def _prove_one_runs(self) -> None:
        found = [fault_guests.states(self.rig, host, self.guests) for host in LXC_HOSTS]
        for guest, *both in zip(self.guests, *found, strict=True):
            running = [host for host, state in zip(LXC_HOSTS, both, strict=True) if state == "RUNNING"]
            if len(running) != 1 or not set(both) <= {"RUNNING", "STOPPED", "ABSENT"}:
                guest.problems.append(f"not one copy runs: {both}")
            guest.at_last = running[0] if running else ""

    def _prove_it_stood_still(self) -> None:
        """The source's copy of one that moved has written nothing after the snapshot made while it was frozen."""
        moved = [guest for guest in self.guests if guest.at_last == LXC_HOSTS[1]]
        pool = host_root(self.rig, LXC_HOSTS[0]) / "pool"
        for guest in moved:
            snapshots = list((pool / ".migrator" / guest.name).glob("*.[0-9]"))
            logs = [(path / "log").read_text() for path in (pool / guest.name / "rootfs", *snapshots)]
            if len(logs) != 2 or logs[0] != logs[1]:
                lines = [len(log.split()) for log in logs]
                guest.problems.append(f"the source's copy ran on: {lines} lines in its logs")

    def _prove_connections(self) -> None:
        """No fault of these ends the container's memory, so each client's one connection still gets right answers."""
        before, end = self._reports(), time.monotonic() + CLIENT_LIMIT
        silent = list(self.guests)
        while silent and time.monotonic() < end:
            now = self._reports()
            silent = [guest for guest in silent if not now[guest.address]["problem"]
                      and now[guest.address]["answers"] <= before[guest.address]["answers"] + 1]
        last = self._reports()
        for guest in self.guests:
            if problem := last[guest.address]["problem"] or (guest in silent and "no answer"):
                guest.problems.append(f"the client's connection: {problem}")

    def _prove_nothing_left(self) -> None:
        """Only a migration that succeeded leaves something behind: its base, for the way back."""
        by_name = {guest.name: guest for guest in self.guests}
        ids = {each["id"]: each["name"] for host in LXC_HOSTS
               for each in self.rig.migrator(host, "status", "-a", "--json").json["migrations"]}
        for line in self.rig.leftovers():
            names = {name for id_, name in ids.items() if id_ in line}
            names |= {name for name in by_name if re.search(rf"\b{name}\b", line)}
            for guest in [by_name[name] for name in names] or self.guests:
                if ": snapshot: " not in line or guest.at_last != LXC_HOSTS[1]:
                    guest.problems.append(f"left: {line}")
