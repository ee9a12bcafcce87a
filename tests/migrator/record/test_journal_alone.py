# SPDX-License-Identifier: GPL-2.0-or-later
"""Another process has the journal for itself alone, as on a full disk, and was stopped in the middle of that.

What is waited for is counted: what SQLite is told that it may wait by itself, and the pauses between two tries.
"""

from __future__ import annotations

import contextlib
import functools
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from migrator.copies.thawing import Frozen
from migrator.copies.watchdog import Task, Watch
from migrator.errors.this_host import JournalBroken
from migrator.record import journal_file
from migrator.record.detail import Still
from migrator.record.journal import Journal
from migrator.record.transactions import HURRY, is_busy

PATIENCE = 0.05  # seconds
PAUSES = round(PATIENCE / journal_file._PAUSE)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Journal(tmp_path / "journal.db").close()
    return tmp_path / "journal.db"


@pytest.fixture
def stopped(path: Path) -> Iterator[sqlite3.Connection]:
    """What the other one has open."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("PRAGMA user_version").fetchone()
        yield other


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that are waited for the log, at most; nobody really sleeps."""
    found: list[float] = []

    class Told(sqlite3.Connection):
        def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
            if "journal_mode" in sql:
                found.append(super().execute("PRAGMA busy_timeout").fetchone()[0] / 1000)
            return super().execute(sql, *values)

    monkeypatch.setattr(sqlite3, "connect", functools.partial(sqlite3.connect, factory=Told))
    monkeypatch.setattr(journal_file, "time", SimpleNamespace(sleep=found.append))
    return found


def waited(waits: list[float]) -> float:
    return round(sum(waits), 3)


def test_it_is_waited_for_once(path: Path, stopped: sqlite3.Connection, waits: list[float]) -> None:
    with pytest.raises(JournalBroken) as broken:
        Journal(path, PATIENCE)
    assert is_busy(broken.value)
    assert waits.count(journal_file._PAUSE) == PAUSES and waited(waits) == PATIENCE


def test_it_is_had_as_soon_as_that_one_lets_go(path: Path, stopped: sqlite3.Connection, waits: list[float],
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    """And then others that write are waited for as long as was asked for."""
    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if waits.count(seconds) == PAUSES - 1:
            stopped.close()

    monkeypatch.setattr(journal_file, "time", SimpleNamespace(sleep=sleep))
    with Journal(path, PATIENCE) as journal:
        assert journal.all() == [] and waits.count(journal_file._PAUSE) == PAUSES - 1
        with journal.transaction() as db:
            assert db.execute("PRAGMA busy_timeout").fetchone()[0] == PATIENCE * 1000


@pytest.mark.parametrize("code", [sqlite3.SQLITE_BUSY, sqlite3.SQLITE_BUSY_RECOVERY])
def test_who_mends_it_is_waited_for_too(path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """As one does who is the first to open it after a crash."""
    left = [1, 1]

    class Mended(sqlite3.Connection):
        def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
            if "journal_mode" in sql and left:
                left.pop()
                busy = sqlite3.OperationalError("database is locked")
                busy.sqlite_errorcode = code
                raise busy
            return super().execute(sql, *values)

    monkeypatch.setattr(sqlite3, "connect", functools.partial(sqlite3.connect, factory=Mended))
    with Journal(path, PATIENCE) as journal:
        assert journal.all() == [] and not left


def test_the_watchdog_does_not_hang_in_it(path: Path, stopped: sqlite3.Connection, waits: list[float]) -> None:
    """That what it watches over is to be thawed is told by its clock."""
    frozen = Frozen.on_record("0badc0de", "web", Path("/pool"), Still(cgroup="/nowhere", pid=1))
    watch = Watch(Task(frozen, 1, (), 60.0, str(path)), lambda _: "", lambda: 61.0, print)
    watch._end = 60.0
    assert watch._must_run(untouched=True)
    with pytest.raises(JournalBroken):
        watch._must_run(untouched=False)
    assert waited(waits) == 2 * HURRY
