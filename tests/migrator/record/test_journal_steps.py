# SPDX-License-Identifier: GPL-2.0-or-later
"""What the journal keeps of a step, and what becomes of one that it cannot keep."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from migrator.base import boot_clock
from migrator.base.process_id import Process
from migrator.errors.data import NoSpace
from migrator.errors.this_host import JournalBroken
from migrator.record.detail import DiskRound
from migrator.record.journal import Journal, Migration
from migrator.record.states import Event, Role, State


@pytest.fixture
def migration(tmp_path: Path) -> Iterator[Migration]:
    with Journal(tmp_path / "journal.db") as journal:
        yield journal.create(id="0badc0de", role=Role.SOURCE, name="web", lxcpath=tmp_path, peer="root@hostb",
                             event=Event.SEND)


@pytest.fixture
def full(migration: Migration, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise JournalBroken(path=migration.journal_path, reason="database or disk is full")

    monkeypatch.setattr(Migration, "_insert_event", broken)


def test_what_cannot_be_recorded_is_not_done(migration: Migration, full: None) -> None:
    with pytest.raises(JournalBroken), migration.step("snapshot"):
        pytest.fail("it is done")


def test_what_gives_something_back_is_done_all_the_same(migration: Migration, full: None,
                                                        capfd: pytest.CaptureFixture[str]) -> None:
    done = []
    with migration.step("thaw", must_be_recorded=False):
        done.append("thawed")
    assert done
    told = " ".join(capfd.readouterr().err.split())
    assert "thaw is begin" in told and "thaw is done" in told


@pytest.mark.parametrize(("needs", "raises"), [
    ({}, True), ({"end_must_be": True}, True), ({"end_must_be": False}, False), ({"must_be_recorded": False}, False),
])
def test_an_end_that_cannot_be_recorded(migration: Migration, monkeypatch: pytest.MonkeyPatch, needs: dict[str, bool],
                                        raises: bool) -> None:
    """The disk has become full in the middle of it."""
    def broken(*_: object, **__: object) -> None:
        raise JournalBroken(path=migration.journal_path, reason="database or disk is full")

    with pytest.raises(JournalBroken) if raises else contextlib.nullcontext(), migration.step("snapshot", **needs):
        monkeypatch.setattr(Migration, "_insert_event", broken)


def test_its_own_error_is_the_one_that_is_raised(migration: Migration, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the failure cannot be recorded: the disk has become full in the middle of it."""
    def broken(*_: object, **__: object) -> None:
        raise JournalBroken(path=migration.journal_path, reason="database or disk is full")

    with pytest.raises(ZeroDivisionError), migration.step("snapshot"):
        monkeypatch.setattr(Migration, "_insert_event", broken)
        raise ZeroDivisionError


@pytest.mark.parametrize(("error", "reason"), [
    (NoSpace(where="/pool", free="1", needed="2", what="the disk"), None),
    (OSError(5, "Input/output error"), "OSError(5, 'Input/output error')"), (ValueError("x" * 3000), "x" * 1980),
    (KeyboardInterrupt(), "KeyboardInterrupt()"),
])
def test_why_it_failed_is_kept(migration: Migration, error: BaseException, reason: str | None) -> None:
    with pytest.raises(type(error)), migration.step("snapshot") as told:
        told.bytes = 1
        raise error
    begun, failed = migration.events()[-2:]
    assert (begun.step, begun.phase, begun.detail) == ("snapshot", "begin", {})
    assert (failed.step, failed.phase) == ("snapshot", "failed")
    if reason is None:
        assert failed.detail == {"reason": str(error)}
    else:
        assert len(failed.detail["reason"]) <= 2000 and reason in failed.detail["reason"]
    if isinstance(error, ValueError):
        assert len(failed.detail["reason"]) == 2000


def test_what_it_made_goes_with_its_end(migration: Migration) -> None:
    with migration.step("snapshot") as told:
        told.bytes = 1
    assert [(each.phase, each.detail) for each in migration.events()[-2:]] == [("begin", {}), ("done", {"bytes": 1})]


@pytest.mark.parametrize(("memory", "at"), [(True, 12.5), (False, 13.5)])
def test_since_when_it_stands_still(migration: Migration, memory: bool, at: float) -> None:
    assert migration.still_at == migration.still_since == 0.0
    migration.note("memory", memory=memory, frozen_at=12.5, stopped_at=13.5, still_monotonic=7.5)
    assert migration.still_at == at and migration.still_since == 7.5


def test_what_the_records_of_a_move_say(migration: Migration, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1234.5)
    migration.note("attempt", attempt=2)
    migration.move(Event.SENT, rounds=[DiskRound(bytes=1)])
    assert [(each.step, each.phase, each.time, each.detail) for each in migration.events()[-2:]] == [
        ("attempt", "done", 1234.5, {"state": "preparing", "attempt": 2}),
        ("sent", "done", 1234.5, {"state": "prepared", "rounds": [{"bytes": 1}]})]
    assert migration.updated == 1234.5 and migration.given() == {"attempt": 2, "rounds": [{"bytes": 1}]}
    found = migration.journal.by_id(migration.id, migration.role)
    assert found and found.state is State.PREPARED and found.given() == migration.given() and found.updated == 1234.5


def made(journal: Journal, **detail: Any) -> Migration:
    return journal.create(id="00000001", role=Role.SOURCE, name="web", lxcpath=Path("/pool"), peer="root@hostb",
                          event=Event.SEND, **detail)


@pytest.mark.parametrize(("detail", "owes"), [({}, False), ({"abandoned": True}, False), ({"abandoned": False}, True),
                                              ({"abandoned": None}, False)])
def test_what_it_owes(migration: Migration, detail: dict[str, Any], owes: bool) -> None:
    one = made(migration.journal, **detail)
    assert one.owes is owes and one.may_be_asked_for is owes


def test_what_it_says_of_itself(migration: Migration) -> None:
    plain = made(migration.journal)
    assert (plain.other_name, plain.ticket, plain.memory, plain.never_began, plain.ended) == (
        "web", "", True, False, False)
    migration.note("names", other_name="shop", ticket="t", memory=False, never_began=True)
    assert (migration.other_name, migration.ticket, migration.memory, migration.never_began) == (
        "shop", "t", False, True)
    migration.note("names", other_name="")
    assert migration.other_name == "web"


def test_who_has_ended_it(migration: Migration, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The process that has, of this boot; what is noted of it later changes nothing."""
    here = Process.current()
    migration.note("attempt", attempt=1)
    migration.move(Event.ROLL_BACK)
    assert not migration.was_ended_by(here) and migration.ending.ended_by is None
    migration.move(Event.ROLLED_BACK)
    assert migration.was_ended_by(here)
    assert not migration.was_ended_by(here._replace(pid=here.pid + 1)) and not migration.was_ended_by(
        here._replace(start=here.start + 1))
    monkeypatch.setattr(Process, "current", lambda: here._replace(pid=here.pid + 1))
    migration.note("abandoned", abandoned=True)
    assert migration.was_ended_by(here)
    monkeypatch.setattr(boot_clock, "BOOT_ID", tmp_path / "boot_id")
    boot_clock.BOOT_ID.write_text("another boot\n")
    assert not migration.was_ended_by(here)


def test_another_thread_may_record(migration: Migration) -> None:
    """What is written in the background may tell of it."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(migration.note, "other", attempt=7).result()
    assert [each.step for each in migration.events()][-1] == "other"
