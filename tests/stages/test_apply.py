# SPDX-License-Identifier: GPL-2.0-or-later
"""What is made ready for a restore while the source stands still: nothing of it is waited for without a limit."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from migrator.criu import restore
from migrator.errors.memory import DowntimeExceeded
from migrator.host import btrfs, lxc
from migrator.record.journal import Journal, Migration
from migrator.record.migration_paths import Layout
from migrator.record.states import Event, Role
from migrator.transfer import received_snapshot, spool
from stages.steps import import_round, restore_here

ID = "0badc0de"
LIMIT = 60.0  # seconds: ends what hangs, and promises nothing


@pytest.fixture
def migration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Migration]:
    with Journal(tmp_path / "journal.db") as journal:
        found = journal.create(id=ID, role=Role.DESTINATION, name="web", lxcpath=tmp_path, peer="hosta",
                               event=Event.RECEIVE, rounds=[], memory=True, increment_uuid="x", image_files=["a.img"])
        Layout(tmp_path, "web", ID).spool.mkdir(parents=True)
        monkeypatch.setattr(lxc, "Container", lambda *_: None)
        monkeypatch.setattr(spool, "verify", lambda *_: None)
        monkeypatch.setattr(restore, "prepare", lambda *_: None)
        monkeypatch.setattr(restore_here, "receive", lambda *_: None)
        yield found


@pytest.fixture
def hanging() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def stage(migration: Migration, limit: float) -> restore_here.Restore:
    return restore_here.Restore(migration, limit, leave=lambda: math.inf)


@pytest.mark.parametrize("what", [(spool, "verify"), (restore, "prepare")])
def test_what_hangs_ends_the_restore_in_time(migration: Migration, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                             hanging: threading.Event, what: tuple[Any, str]) -> None:
    """A mount's source on a file server that is gone: the source would stand still for as long as that."""
    monkeypatch.setattr(*what, lambda *_: hanging.wait(LIMIT))
    with pytest.raises(DowntimeExceeded):
        stage(migration, 0.05)._apply(tmp_path)
    assert not hanging.is_set()


def test_the_disk_is_received_in_the_time_that_is_left(migration: Migration, monkeypatch: pytest.MonkeyPatch,
                                                       tmp_path: Path) -> None:
    limits: list[float] = []

    def receive(_migration: Migration, *_: object) -> None:
        left: Callable[[], float] = _[-1]  # type: ignore[assignment]
        limits.append(left())
        raise EOFError

    monkeypatch.setattr(restore_here, "receive", receive)
    with pytest.raises(EOFError):
        stage(migration, 3600.0)._apply(tmp_path)
    assert 0 < limits[0] <= 3600.0


def test_the_limit_reaches_btrfs_and_the_import_behind(migration: Migration, monkeypatch: pytest.MonkeyPatch,
                                                       tmp_path: Path) -> None:
    told: list[float] = []

    class Behind:
        def brought(self, _target: Path, limit: float) -> bool:
            told.append(limit)
            return False

    def receive(*_: object, limit: float, leave: int) -> None:
        assert leave == 0, "root has brought it"
        told.append(limit)
        raise EOFError

    monkeypatch.setattr(received_snapshot, "receive", receive)
    monkeypatch.setattr(btrfs, "delete", lambda _: None)
    with pytest.raises(EOFError):
        import_round.receive(migration, Layout(tmp_path, "web", ID), tmp_path / "increment", 1, "x",
                             Behind(), lambda: 7.0)  # type: ignore[arg-type]
    assert told == [7.0, 7.0]
