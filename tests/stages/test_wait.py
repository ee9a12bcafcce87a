# SPDX-License-Identifier: GPL-2.0-or-later
"""Which migration is waited for is told by the order of the journal and of the lock, never by a clock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrator.base import boot_clock
from migrator.base.process_id import Process
from migrator.errors.containers import NoMigration
from migrator.errors.jobs import RolledBack
from migrator.record import container_lock
from migrator.record.container_lock import Holder
from migrator.record.journal import Journal, Migration
from migrator.record.states import Event, Role
from stages import wait
from stages.steps import arguments
from stages.steps.options import NamedContainer

CLOCKS = [0.0, 1e9, 1e12]  # what the time of day may be when it is waited: before, or long after, what is recorded


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Journal]:
    path = tmp_path / "journal.db"
    monkeypatch.setattr(wait, "DEFAULT_PATH", path)
    monkeypatch.setattr(arguments, "require_root", lambda _: None)
    monkeypatch.setattr("migrator.host.lxc.default_lxcpath", lambda: tmp_path)
    with Journal(path) as opened:
        yield opened


def rolled_back(journal: Journal, id_: str = "0badc0de") -> Migration:
    """This very process has ended it."""
    migration = journal.create(id=id_, role=Role.SOURCE, name="web", lxcpath=journal.path.parent, peer="root@hostb",
                               event=Event.SEND, destination_host="hostb", rounds=[])
    migration.move(Event.ROLL_BACK)
    migration.move(Event.ROLLED_BACK)
    return migration


def waits() -> object:
    return wait.run(wait.WaitOptions(NamedContainer("web")))


def at_work(monkeypatch: pytest.MonkeyPatch, *seen: Holder | None) -> list[Holder | None]:
    """Who has the lock, each time that it is asked; the last one from then on."""
    left = list(seen)
    monkeypatch.setattr(container_lock, "of", lambda *_: left.pop(0) if len(left) > 1 else left[0])
    monkeypatch.setattr(time, "sleep", lambda _: None)
    return left


ME = Holder(*Process.current(), "migrate")
ANOTHER = Holder(1, 1, "migrate")


@pytest.mark.parametrize("now", CLOCKS)
def test_who_has_ended_it_is_still_at_work(journal: Journal, monkeypatch: pytest.MonkeyPatch, now: float) -> None:
    """It tidies up; nothing else is about to begin."""
    monkeypatch.setattr(time, "time", lambda: now)
    id_ = rolled_back(journal).id
    at_work(monkeypatch, ME)
    with pytest.raises(RolledBack, match=id_):
        waits()


@pytest.mark.parametrize("now", CLOCKS)
def test_another_one_is_about_to_begin_the_next(journal: Journal, monkeypatch: pytest.MonkeyPatch, now: float) -> None:
    monkeypatch.setattr(time, "time", lambda: now)
    rolled_back(journal)

    def begins(_: float) -> None:
        if not journal.by_id("feedface", Role.SOURCE):
            rolled_back(journal, "feedface")

    at_work(monkeypatch, ANOTHER, ANOTHER, ME)
    monkeypatch.setattr(time, "sleep", begins)
    with pytest.raises(RolledBack, match="feedface"):
        waits()


def test_who_let_go_before_it_was_ended_begins_nothing(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between a look at the lock and one at the journal somebody else had it, and ended it."""
    id_ = rolled_back(journal).id
    at_work(monkeypatch, ANOTHER, None)
    with pytest.raises(RolledBack, match=id_):
        waits()


def test_a_process_of_an_earlier_boot_is_another_one(journal: Journal, monkeypatch: pytest.MonkeyPatch,
                                                     tmp_path: Path) -> None:
    """Process ids and ticks come again after a reboot, and may be the same at each."""
    rolled_back(journal)
    monkeypatch.setattr(boot_clock, "BOOT_ID", tmp_path / "boot_id")
    boot_clock.BOOT_ID.write_text("another\n")
    at_work(monkeypatch, ME, ME, None)
    with pytest.raises(NoMigration):
        waits()
