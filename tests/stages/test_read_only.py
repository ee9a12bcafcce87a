# SPDX-License-Identifier: GPL-2.0-or-later
"""The journal's file system becomes read-only while the container stands still: it runs first, and no record is made.

What a command has open can be read then and not be written any more, which `PRAGMA query_only` is for SQLite too.
"""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from migrator.copies import after_crash, bases, origins, remains, thawing
from migrator.copies.thawing import Frozen
from migrator.copies.watchdog import Task, Watch
from migrator.criu import criu_dump
from migrator.errors.outcomes import SourceRunsAgain, SourceStateUnknown
from migrator.errors.this_host import JournalBroken
from migrator.record import container_lock, transactions
from migrator.record.detail import Still
from migrator.record.journal import Journal, Migration
from migrator.record.states import State
from stages import abort
from stages.steps import arguments, freeze_and_offer, give_back, offer, prologue
from stages.steps.options import EndOptions, NamedContainer
from tests.stages.downtimes import TOO_LATE, There
from tests.stages.journals import dumping, journal, offered  # noqa: F401 -- a fixture


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The thaw, and what is asked of the other host."""
    found: list[str] = []
    monkeypatch.setattr(thawing, "thaw", lambda _: found.append("thawed"))
    monkeypatch.setattr(remains, "first_is_here", lambda _: True)
    monkeypatch.setattr(criu_dump, "wait_for_dump", lambda *_: None)
    monkeypatch.setattr(origins, "is_there", lambda _: True)
    monkeypatch.setattr(after_crash, "where", lambda _: "")
    monkeypatch.setattr(bases, "named", lambda *_: ["0badc0de.1"])
    monkeypatch.setattr(give_back, "drop_attempt", lambda *_: found.append("dropped"))
    return found


def frozen(journal: Journal, begun: Callable[[Journal], Migration]) -> Migration:
    migration = begun(journal)
    migration.note("frozen", pid=1, cgroup="/nowhere", ports=[], attempt=1)
    read_only(journal)
    return migration


def read_only(journal: Journal) -> None:
    journal._file.connection().execute("PRAGMA query_only = ON")


def of(journal: Journal) -> State:
    with Journal(journal.path) as another:
        found = another.latest("web", another.path.parent) or another.all()[-1]
        return found.state


def test_a_dump_that_fails_for_that(journal: Journal, done: list[str]) -> None:
    migration = frozen(journal, dumping)
    with pytest.raises(JournalBroken, match="readonly") as broken, migration.step("increment"):
        done.append("goes on")
    assert not transactions.is_busy(broken.value) and done == []
    with pytest.raises(SourceRunsAgain, match="readonly"):
        offer.give_up(migration, There(), broken.value)  # type: ignore[arg-type]
    assert done == ["thawed"] and of(journal) is State.DUMPING, "the next command begins with the thaw"


def test_an_offer_that_cannot_be_recorded_is_none(journal: Journal, done: list[str]) -> None:
    migration = frozen(journal, dumping)
    offer.withdraw(migration)
    with pytest.raises(SourceRunsAgain):
        offer.give_up(migration, There(), TOO_LATE)  # type: ignore[arg-type]
    assert done == ["thawed"]


def test_one_that_is_recorded_stays(journal: Journal, done: list[str]) -> None:
    """It could not be taken back on disk, and any command that comes later would make it."""
    migration = frozen(journal, offered)
    with pytest.raises(SourceStateUnknown, match="readonly"):
        offer.withdraw(migration)
    assert done == []


@pytest.mark.parametrize(("begun", "before"), [(dumping, ["thawed", "told"]), (offered, ["told", "thawed"])])
def test_a_rollback_thaws(journal: Journal, done: list[str], begun: Callable[[Journal], Migration],
                          before: list[str]) -> None:
    """Once the destination has given the token back, where that may have it."""
    migration = frozen(journal, begun)

    def tell() -> str:
        done.append("told")
        return "uuid"

    state = migration.state
    for _ in range(2):  # typed once more
        del done[:]
        with pytest.raises(JournalBroken, match="readonly"):
            give_back.roll_back(migration, tell)
        assert done[:2] == before and of(journal) is state
    journal._file.connection().execute("PRAGMA query_only = OFF")
    assert give_back.roll_back(migration, tell).data["thawed"] and of(journal) is State.ROLLED_BACK


def test_what_a_killed_dump_has_left_runs_first(journal: Journal, done: list[str]) -> None:
    """The begin of `resume` and of `create-dump`."""
    migration = frozen(journal, dumping)
    with pytest.raises(JournalBroken, match="readonly"):
        freeze_and_offer.heal(migration)
    assert done == ["thawed"] and of(journal) is State.DUMPING


def test_abort_thaws_what_nobody_works_on(journal: Journal, done: list[str], tmp_path: Path,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    migration = frozen(journal, dumping)
    locks = tmp_path / "lock"

    def opened(_: Path, *given: float) -> contextlib.AbstractContextManager[Journal]:
        made = Journal(journal.path, *given)
        read_only(made)
        return made

    for module in (abort, prologue):
        monkeypatch.setattr(module, "Journal", opened)
    monkeypatch.setattr(container_lock, "LOCKS", locks)
    monkeypatch.setattr(arguments, "require_root", lambda _: None)
    monkeypatch.setattr(give_back, "tell", lambda *_, **__: "uuid")
    monkeypatch.setattr(give_back, "connected", lambda *_: contextlib.nullcontext())
    with pytest.raises(JournalBroken, match="readonly"):
        abort.run(EndOptions(NamedContainer(migration.name, str(migration.lxcpath))))
    assert done[0] == "thawed"


def test_the_watchdog_thaws(journal: Journal, done: list[str], monkeypatch: pytest.MonkeyPatch,
                            tmp_path: Path) -> None:
    """Its program was killed; it needs no record."""
    migration = frozen(journal, dumping)
    still = Still(cgroup="/nowhere", pid=1)
    task = Task(Frozen.on_record(migration.id, "web", migration.lxcpath, still), 1, (), 60.0, str(journal.path),
                str(tmp_path / "lock"))
    watch = Watch(task, lambda _: "", lambda: 0.0, lambda _: None)
    monkeypatch.setattr("migrator.copies.watchdog.Journal", lambda path, patience: journal)
    monkeypatch.setattr(Watch, "_criu_is_at_work", lambda _: False)
    monkeypatch.setattr(Frozen, "is_here", lambda _: True)
    monkeypatch.setattr("migrator.copies.second_start.refuse", lambda *_, **__: None)
    monkeypatch.setattr(Journal, "close", lambda _: None)
    assert watch.run() and done == ["thawed"]
