# SPDX-License-Identifier: GPL-2.0-or-later
"""The watchdog thaws when it must, once, and never what is not its own any more. The cgroup is a folder."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from errno import ENOSPC
from pathlib import Path
from typing import Any

import pytest

from migrator.base import names
from migrator.copies import thawing, watchdog
from migrator.copies.watchdog import POLL, Watch
from migrator.errors.this_host import Busy, JournalBroken
from migrator.host import network
from migrator.host.network import Port
from migrator.record import migration_paths
from migrator.record.journal import Journal, Migration
from migrator.record.states import Event
from tests.migrator.copies.watched import (  # noqa: F401 -- fixtures
    LIMIT,
    Never,
    Unreadable,
    cgroup,
    check,
    frozen,
    locks,
    migration,
    task,
    watched,
)

IS_STILL_BEING_DUMPED = Watch._is_still_being_dumped


def test_dismissed_in_time_it_does_nothing(migration: Migration, cgroup: Path) -> None:
    assert not watched(task(migration, cgroup), "begins", "dad", LIMIT - 1, "dismissed")
    assert frozen(cgroup)


def test_it_thaws_when_the_time_is_up(migration: Migration, cgroup: Path) -> None:
    assert watched(task(migration, cgroup), 500.0, "begins", LIMIT - 1, lambda: check(frozen(cgroup)), 2.0,
                   lambda: check(not frozen(cgroup)), "dismissed")


def test_whose_clock_is_stopped_waits_for_the_end_of_the_program(migration: Migration, cgroup: Path) -> None:
    """Killed between that and the record of the offer, it has offered nothing: the journal says so."""
    answers: list[bool] = []
    assert not watched(task(migration, cgroup), "begins", "clock", 10 * LIMIT, "dismissed", answers=answers)
    assert frozen(cgroup) and answers == [False]
    assert watched(task(migration, cgroup), "begins", "clock", 10 * LIMIT, lambda: check(frozen(cgroup)))
    assert not frozen(cgroup)
    (cgroup / "cgroup.freeze").write_text("1")
    assert not watched(task(migration, cgroup), "begins", "clock", lambda: migration.move(Event.OFFER))
    assert frozen(cgroup)


def test_a_clock_that_is_stopped_too_late_says_so(migration: Migration, cgroup: Path) -> None:
    answers: list[bool] = []
    assert watched(task(migration, cgroup), "begins", LIMIT + 1, "clock", "dismissed", answers=answers)
    assert answers == [True]


def test_what_was_never_offered_is_thawed_without_the_journal(migration: Migration, cgroup: Path,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    unreadable = Unreadable(monkeypatch)
    with migration_paths.locked("web", locks(migration), lxcpath=migration.lxcpath):
        pass  # as who froze it had
    assert unreadable.watch(task(migration, cgroup), "begins", 1.0)
    assert not frozen(cgroup) and unreadable.told.now >= 1000.0 + LIMIT


@pytest.mark.parametrize("made_anew", [False, True])
def test_nor_with_one_whose_disk_is_gone(migration: Migration, cgroup: Path, monkeypatch: pytest.MonkeyPatch,
                                         made_anew: bool) -> None:
    """It makes none there; nor does one that somebody else has made there since, and that is empty, say anything."""
    unreadable = Unreadable(monkeypatch)
    monkeypatch.setattr(Watch, "_is_still_being_dumped", IS_STILL_BEING_DUMPED)
    elsewhere = migration.lxcpath / "umounted" / "journal.db"
    if made_anew:
        Journal(elsewhere).close()
    with migration_paths.locked("web", locks(migration), lxcpath=migration.lxcpath):
        pass
    assert unreadable.watch(dataclasses.replace(task(migration, cgroup), journal=str(elsewhere)), "begins", 1.0)
    assert not frozen(cgroup) and unreadable.told.now >= 1000.0 + LIMIT
    assert elsewhere.parent.exists() is made_anew


def test_what_was_given_back_and_forgotten_since_is_nothing_to_wait_for(migration: Migration, cgroup: Path) -> None:
    migration.move(Event.THAW)
    migration.move(Event.ROLL_BACK)
    migration.move(Event.ROLLED_BACK)
    migration.journal.forget(migration)
    (cgroup / "cgroup.freeze").write_text("0")
    assert not watched(task(migration, cgroup), "begins")


@pytest.mark.parametrize("last", ["clock", "left", "another", "nobody"])
def test_what_may_have_been_offered_is_not(migration: Migration, cgroup: Path, monkeypatch: pytest.MonkeyPatch,
                                           last: str) -> None:
    """By that program itself, or by whoever had the lock after it."""
    unreadable = Unreadable(monkeypatch)
    made = task(migration, cgroup)
    with migration_paths.locked("web", locks(migration), lxcpath=migration.lxcpath):
        pass
    if last in ("another", "nobody"):
        text = f"{made.program[0]} {made.program[1] + 1} resume\n" if last == "another" else ""
        (locks(migration) / names.in_path("web", migration.lxcpath)).write_text(text)
    with pytest.raises(Never):
        unreadable.watch(made, "begins", *([last] if last in ("clock", "left") else []), 1.0)
    assert frozen(cgroup)


def test_it_thaws_what_is_frozen_once_more_after_that(migration: Migration, cgroup: Path) -> None:
    """A program that was stopped before it froze goes on, and does so."""
    assert watched(task(migration, cgroup), "begins", LIMIT + 1, lambda: (cgroup / "cgroup.freeze").write_text("1"),
                   1.0, lambda: check(not frozen(cgroup)), "dismissed")


def test_before_the_freeze_no_time_counts(migration: Migration, cgroup: Path) -> None:
    assert not watched(task(migration, cgroup), 10 * LIMIT, "dismissed")
    assert frozen(cgroup)


def test_it_thaws_when_it_is_left_alone(migration: Migration, cgroup: Path) -> None:
    assert watched(task(migration, cgroup), "begins", 1.0)
    assert not frozen(cgroup)


@pytest.mark.parametrize("rest", [(), (LIMIT + 1, "dismissed")])
def test_what_has_ended_meanwhile_leaves_no_silence(migration: Migration, cgroup: Path, rest: tuple[str | float, ...],
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    monkeypatch.setattr(network, "hear", heard.append)
    made = task(migration, cgroup)
    made = dataclasses.replace(made, frozen=dataclasses.replace(made.frozen, ports=(Port("eth0", "veth1", "br0"),)))
    watched(made, "begins", lambda: shutil.rmtree(cgroup), *rest)
    assert set(heard) == {migration.id}


@pytest.mark.parametrize("event", [Event.OFFER, Event.THAW])
def test_left_alone_it_thaws_nothing_that_has_gone_on(migration: Migration, cgroup: Path, event: Event) -> None:
    """The token was offered, or another command has healed it."""
    migration.move(event)
    assert not watched(task(migration, cgroup), "begins", 1.0)
    assert frozen(cgroup)


def test_left_alone_it_thaws_no_later_dump(migration: Migration, cgroup: Path) -> None:
    migration.note("attempt", attempt=3)
    assert not watched(task(migration, cgroup), "begins")
    assert frozen(cgroup)


@pytest.mark.parametrize("left", [["begins", 1.0], ["begins", LIMIT + 1, "dismissed"]], ids=["alone", "too late"])
def test_what_fails_is_tried_until_it_has_thawed(migration: Migration, cgroup: Path, monkeypatch: pytest.MonkeyPatch,
                                                 left: list[str | float]) -> None:
    """A disk that is full for a while, a journal that cannot be read, a kernel that is out of memory."""
    failures: list[Exception] = [JournalBroken(path="journal.db", reason="disk I/O error"), OSError(ENOSPC, "full")] * 2
    thaw, dumped = thawing.thaw, Watch._is_still_being_dumped

    def after_failures(step: Callable[[Any], Any], given: object) -> Any:
        if failures:
            assert frozen(cgroup)
            raise failures.pop()
        return step(given)

    monkeypatch.setattr(thawing, "thaw", lambda given: after_failures(thaw, given))
    monkeypatch.setattr(Watch, "_is_still_being_dumped", lambda self: after_failures(dumped, self))
    monkeypatch.setattr("migrator.copies.watchdog.time.sleep", lambda _seconds: None)
    if left[-1] == "dismissed":
        left[2:2] = [POLL] * 5
    assert watched(task(migration, cgroup), *left)
    assert not frozen(cgroup) and not failures


def test_a_lock_needs_no_room(migration: Migration, cgroup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has it is only written there for others to read."""

    def full(*_: object) -> int:
        raise OSError(ENOSPC, "full")

    monkeypatch.setattr("migrator.record.container_lock.os.pwrite", full)
    assert watched(task(migration, cgroup), "begins", 1.0)
    assert not frozen(cgroup)
    with (migration_paths.locked("web", locks(migration), lxcpath=migration.lxcpath), pytest.raises(Busy),
          migration_paths.locked("web", locks(migration), lxcpath=migration.lxcpath)):
        pass


def test_left_alone_it_leaves_the_work_to_who_has_the_lock(migration: Migration, cgroup: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    holder = migration_paths.locked("web", locks(migration), lxcpath=migration.lxcpath)
    holder.__enter__()
    looks = []

    def look(_seconds: float) -> None:
        assert frozen(cgroup)
        looks.append(1)
        if len(looks) == 3:
            migration.move(Event.OFFER)
            holder.__exit__(None, None, None)

    monkeypatch.setattr("migrator.copies.watchdog.time.sleep", look)
    assert not watched(task(migration, cgroup), "begins")
    assert frozen(cgroup) and len(looks) == 3


def test_it_waits_for_criu(migration: Migration, cgroup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = [[7], [7], []]
    asked: list[list[Path]] = []

    def processes(folders: Iterator[Path]) -> list[int]:
        asked.append(list(folders))
        assert frozen(cgroup)
        return running.pop(0) if running else []

    monkeypatch.setattr("migrator.copies.watchdog.criu_dump.processes", processes)
    assert watched(task(migration, cgroup), "begins")
    assert not running and asked[0] == [cgroup / "images"] and not frozen(cgroup)


def test_the_process(migration: Migration, cgroup: Path) -> None:
    """In a session of its own; a hang-up, Ctrl-C and Ctrl-Z do nothing, and its answer tells what it did."""
    for limit, thawed in ((LIMIT, False), (0.0, True)):
        (cgroup / "cgroup.freeze").write_text("1")
        dog = watchdog.Watchdog(task(migration, cgroup, limit))
        dog.start()
        assert dog._program
        pid = dog._program.pid
        session = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[3]
        assert session == str(pid)
        for number in ("HUP", "INT", "TERM", "TSTP"):
            subprocess.run(["kill", f"-{number}", str(pid)], check=True)
        dog.begins()
        while thawed and frozen(cgroup):
            time.sleep(0.001)  # the test's own limit ends this
        assert dog.stop_clock() is thawed
        assert Path(f"/proc/{pid}").exists(), "it stays until the offer is on record"
        dog.dismiss()
        assert not Path(f"/proc/{pid}").exists()
        dog.dismiss()  # there is none any more
        dog.leave()


def test_whose_program_gives_up_goes_on_alone(migration: Migration, cgroup: Path) -> None:
    dog = watchdog.Watchdog(task(migration, cgroup))
    dog.start()
    dog.begins()
    program = dog._program
    with migration_paths.locked("web", locks(migration), lxcpath=migration.lxcpath):
        dog.leave()
        assert program and frozen(cgroup)
    program.process.wait()
    assert not frozen(cgroup)


FREEZES = """
import sys
from pathlib import Path
from migrator.copies.thawing import Frozen
from migrator.copies.watchdog import POLL, Task, Watchdog
dog = Watchdog(Task.from_json(sys.argv[1]))
dog.start()
dog.begins()
if sys.argv[2] == "clock":
    dog.stop_clock()
print(dog._program.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("when", ["begins", "clock"])
def test_whoever_froze_it_is_killed(migration: Migration, cgroup: Path, when: str) -> None:
    command = [sys.executable, "-c", FREEZES, task(migration, cgroup).to_json(), when]
    with subprocess.Popen(command, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout
        pid = int(program.stdout.readline())
        assert frozen(cgroup)
        program.kill()
    while frozen(cgroup) or Path(f"/proc/{pid}").exists():
        time.sleep(0.001)  # the test's own limit ends this
