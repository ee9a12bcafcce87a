# SPDX-License-Identifier: GPL-2.0-or-later
"""A dump of a container whose first process is a program of the test's."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from migrator.base.result import Result
from migrator.copies import thawing
from migrator.criu import terminals
from migrator.host import btrfs, lxc, network
from migrator.preflight.facts.task_facts import Tasks
from migrator.record import image_folders
from migrator.record.journal import Journal, Migration
from migrator.record.states import Event
from migrator.transfer import spool
from migrator.transfer.rpc import Connection
from stages.steps import dump, examine
from stages.steps.handover import Handover
from stages.steps.options import StandstillOptions
from stages.steps.standstill import Standstill
from stages.steps.stop import Stop
from tests.stages.journals import dumping
from tests.stages.monitorless import Monitorless
from tests.stages.offers import There


class Guest(Monitorless):
    """As LXC sees it: by the process that stands in for its first one."""

    rootfs = Path("/nowhere/rootfs")
    pid = 0
    state = "RUNNING"
    is_ephemeral = False
    cgroup: Path

    @property
    def init_pid(self) -> int:
        return self.pid

    def tell_frozen(self) -> None:
        """Nobody hears it."""


class Watchdog:
    """Notes what it is told."""

    def __init__(self, task: Any) -> None:
        self.frozen: thawing.Frozen = task.frozen
        self.told: list[str] = []

    def start(self) -> None: ...

    def begins(self) -> None:
        assert self.frozen.is_here(), "it would thaw nothing"
        self.told.append("begins")

    def dismiss(self) -> None:
        self.told.append("dismissed")

    def leave(self) -> None: ...


@pytest.fixture
def migration(journal: Journal) -> Migration:
    made = dumping(journal)
    made.move(Event.THAW)
    return made


@pytest.fixture
def guest(migration: Migration, cgroup: Path, init: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> Guest:
    made = Guest(migration.name, migration.lxcpath)
    made.pid, made.cgroup = init.pid, cgroup
    (cgroup / "cgroup.freeze").write_text("0")
    monkeypatch.setattr(lxc, "Container", lambda *_: made)
    monkeypatch.setattr(btrfs, "delete", lambda _: None)
    monkeypatch.setattr(network, "ports", lambda _: [])
    monkeypatch.setattr(terminals, "found", lambda _: [])
    monkeypatch.setattr(image_folders, "make_images", lambda *_: None)
    monkeypatch.setattr(spool, "check_space", lambda *_, **__: None)
    monkeypatch.setattr(dump, "Watchdog", Watchdog)
    monkeypatch.setattr(dump.Dump, "_dump_and_send", lambda *_: pytest.fail("it was dumped"))
    return made


def standstill_of(migration: Migration, guest: Guest) -> Standstill:
    return Standstill(StandstillOptions(), migration, cast("lxc.Container", guest), cast("Connection", There({})))


def dump_of(migration: Migration, guest: Guest) -> dump.Dump:
    facts = SimpleNamespace(memory=0, tasks=Tasks())
    host = SimpleNamespace(criu=SimpleNamespace(features=()))
    looked = cast("examine.Look", SimpleNamespace(container=facts, source=host, destination=host))
    return dump.Dump(standstill_of(migration, guest), looked)


def hand_over(way: dump.Dump | Stop) -> Result:
    return Handover(way.standstill, way).run()
