# SPDX-License-Identifier: GPL-2.0-or-later
"""A handover whose steps are only noted, and one of which can fail."""

from __future__ import annotations

from typing import cast

import pytest

from migrator.base.result import Result
from migrator.errors import MigratorError
from migrator.host import btrfs, lxc
from migrator.record.detail import BeforeStill, Figures
from migrator.record.journal import Journal, Migration
from migrator.record.states import Event, State
from migrator.transfer.rpc import Connection
from stages.steps import thaw_again
from stages.steps.handover import Handover
from stages.steps.options import StandstillOptions
from stages.steps.standstill import Standstill
from tests.stages.journals import dumping
from tests.stages.offers import There

FAILS = MigratorError(reason="it fails")


class Plain:
    """Notes what is done, with the state that is on record then; fails at one step."""

    fence_first = False

    def __init__(self, migration: Migration, fails: str = "", error: MigratorError = FAILS) -> None:
        container = lxc.Container.__new__(lxc.Container)
        container.name, container.lxcpath = migration.name, migration.lxcpath
        self.there = There({})
        self.standstill = Standstill(StandstillOptions(), migration, container, cast("Connection", self.there))
        self.migration = migration
        self.fenced = True
        self.fails, self.error = fails, error
        self.done: list[str] = []

    def run(self) -> Result:
        made = Handover(self.standstill, self)
        made.fenced = self.fenced
        return made.run()

    def _do(self, what: str) -> None:
        self.done.append(f"{what}, {self.migration.state}")
        if what == self.fails:
            raise self.error

    def prepare(self) -> None: ...

    def unprepared(self) -> None:
        self.done.append("unprepared")

    def record(self) -> BeforeStill:
        return BeforeStill(init=None, boot="", cgroup="")

    def take(self) -> Figures:
        self._do("take")
        return Figures()

    def stop_clock(self) -> None:
        self._do("stop clock")

    def unwatched(self) -> None:
        self._do("unwatched")

    def left_alone(self) -> None:
        self._do("left alone")

    def result(self, figures: Figures, still: float) -> Result:
        return Result({}, "")


@pytest.fixture
def migration(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> Migration:
    monkeypatch.setattr(btrfs, "delete", lambda _: None)
    monkeypatch.setattr(btrfs, "sync", lambda _: None)
    monkeypatch.setattr(lxc.Container, "rootfs", "")
    made = dumping(journal)
    made.move(Event.THAW)
    return made


@pytest.fixture
def thawed(monkeypatch: pytest.MonkeyPatch) -> list[State]:
    """The state on record, at each thaw."""
    done: list[State] = []

    def thaw(migration: Migration) -> bool:
        done.append(migration.state)
        return True

    monkeypatch.setattr(thaw_again, "thaw_source", thaw)
    return done
