# SPDX-License-Identifier: GPL-2.0-or-later
"""Another command has the journal locked, stopped in the middle of a write: what stands still does not wait for it."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from migrator.copies import after_crash, bases, remains, thawing
from migrator.criu import criu_dump
from migrator.errors.outcomes import SourceRunsAgain
from migrator.errors.this_host import JournalBroken
from migrator.record import transactions
from migrator.record.journal import Journal, Migration
from migrator.record.states import Event, State
from stages.steps import give_back, offer
from tests.stages.downtimes import TOO_LATE, There
from tests.stages.journals import dumping, journal, offered  # noqa: F401 -- a fixture


@pytest.fixture
def writer(journal: Journal) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(journal.path, isolation_level=None)) as other:
        yield other


@pytest.fixture
def done(journal: Journal, writer: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done: how long each write would wait, in ms, and the thaw; the other one lets go with that."""
    found: list[str] = []
    honest = Journal.transaction

    @contextlib.contextmanager
    def transaction(self: Journal, **how: bool) -> Iterator[sqlite3.Connection]:
        with honest(self, **how) as db:
            (patience,) = db.execute("PRAGMA busy_timeout").fetchone()
            found.append(str(patience))
            yield db

    def thaw(_: object) -> None:
        found.append("thawed")
        if writer.in_transaction:
            writer.execute("ROLLBACK")

    monkeypatch.setattr(transactions, "HURRY", 0.001)
    monkeypatch.setattr(Journal, "transaction", transaction)
    monkeypatch.setattr(thawing, "thaw", thaw)
    monkeypatch.setattr(remains, "first_is_here", lambda _: True)
    monkeypatch.setattr(criu_dump, "wait_for_dump", lambda *_: None)
    monkeypatch.setattr(after_crash, "where", lambda _: "")
    return found


def frozen(journal: Journal, begun: Callable[[Journal], Migration]) -> Migration:
    migration = begun(journal)
    migration.learn(pid=1, cgroup="/nowhere", ports=[])
    return migration


@pytest.mark.parametrize("locked", [False, True])
def test_a_failed_dump_is_thawed(journal: Journal, writer: sqlite3.Connection, done: list[str], locked: bool) -> None:
    migration = frozen(journal, dumping)
    del done[:]
    if locked:
        writer.execute("BEGIN IMMEDIATE")
    with pytest.raises(SourceRunsAgain):
        offer.give_up(migration, There(), TOO_LATE)  # type: ignore[arg-type]
    assert done == [*([] if locked else ["1"]), "thawed", "1", "10000"] and migration.state is State.PREPARED


@pytest.mark.parametrize("locked", [False, True])
def test_a_rollback_thaws(journal: Journal, writer: sqlite3.Connection, done: list[str], locked: bool,
                          monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be recorded is then, before anything goes; and a base need not go for that."""
    migration = frozen(journal, offered)
    monkeypatch.setattr(bases, "named", lambda *_: ["0badc0de.1"])
    monkeypatch.setattr(give_back, "drop_attempt", lambda each, kept: done.append(f"{each.state}, but {kept}"))
    monkeypatch.setattr("migrator.copies.bases.supersede", lambda _: None)
    del done[:]
    if locked:
        writer.execute("BEGIN IMMEDIATE")
    give_back.roll_back(migration, lambda: "uuid")
    first = ["thawed", "1", "10000"] if locked else ["1", "1", "thawed", "1"]
    assert done == [*first, "rolling-back, but ['0badc0de.1']", "10000"] and migration.state is State.ROLLED_BACK


def test_one_that_is_forced_is_recorded_first(journal: Journal, writer: sqlite3.Connection, done: list[str],
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    migration = frozen(journal, offered)
    monkeypatch.setattr(give_back, "drop_attempt", lambda *_: None)
    del done[:]
    give_back.roll_back(migration, None)
    assert done == ["10000", "1", "thawed", "1", "10000"]
    with Journal(journal.path, patience=0.001) as another:
        found: Any = another.by_id(migration.id, migration.role)
        found.state = State.OFFERED
        del done[:]
        writer.execute("BEGIN IMMEDIATE")
        with pytest.raises(JournalBroken) as refused:
            give_back.roll_back(found, None)
        assert done == [] and transactions.is_busy(refused.value)


def test_only_a_lock_is_waited_for_later(journal: Journal) -> None:
    migration = dumping(journal)
    with journal.transaction() as db:
        db.execute("DROP TABLE events")
    with pytest.raises(JournalBroken) as broken:
        migration.move(Event.OFFER)
    assert not transactions.is_busy(broken.value) and not transactions.is_busy(JournalBroken(path="x", reason="full"))
