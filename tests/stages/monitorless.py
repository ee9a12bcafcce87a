# SPDX-License-Identifier: GPL-2.0-or-later
"""A frozen container whose monitor is gone: a process, and a folder in the place of its cgroup."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrator.base import boot_clock, process_id
from migrator.copies import ending, no_memory
from migrator.criu import criu_dump
from migrator.errors.containers import ContainerNotRunning
from migrator.host import lxc
from migrator.record.journal import Journal, Migration
from migrator.record.states import Event, Role


class Monitorless:
    """As LXC sees a container whose monitor has been killed."""

    state = "STOPPED"
    rootfs = Path("/nowhere/rootfs")

    def __init__(self, name: str, lxcpath: Path) -> None:
        self.name, self.lxcpath = name, lxcpath
        self.folder = lxcpath / name
        self.config_file = self.folder / "config"

    @property
    def init_pid(self) -> int:
        raise ContainerNotRunning(name=self.name, lxcpath=self.lxcpath, state="STOPPED")

    def tell_thawed(self) -> None:
        """Nobody hears it."""

    def is_impersonated(self) -> bool:
        return False


@pytest.fixture
def init() -> Iterator[subprocess.Popen[bytes]]:
    """The container's first process."""
    with subprocess.Popen(["sleep", "1000"]) as program:
        yield program
        program.kill()


@pytest.fixture
def cgroup(tmp_path: Path, init: subprocess.Popen[bytes]) -> Path:
    """Its cgroup, frozen; files only."""
    made = tmp_path / "lxc.payload.web"
    made.mkdir()
    (made / "cgroup.freeze").write_text("1")
    (made / "cgroup.events").write_text("populated 1\nfrozen 1\n")
    (made / "cgroup.procs").write_text(f"{init.pid}\n")
    return made


def frozen(journal: Journal, folder: Path, pid: int, *events: Event, **detail: object) -> Migration:
    """One whose first process this is; the folder of its container is made by the test."""
    record = {"pid": pid, "cgroup": str(folder), "init": [pid, process_id.start_time(pid)],
              "boot": boot_clock.BOOT_ID.read_text().strip(), "ports": []} | detail
    migration = journal.create(id="0badc0de", role=Role.SOURCE, name="web", lxcpath=journal.path.parent,
                               peer="root@hostb", event=Event.SEND, destination_host="hostb", rounds=[],
                               destination_lxcpath="/pool", **record)
    for event in (Event.SENT, Event.FREEZE, *events):
        migration.move(event)
    return migration


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is started from its disk."""
    names: list[str] = []
    monkeypatch.setattr(lxc, "Container", Monitorless)
    monkeypatch.setattr(lxc, "END_LIMIT", 0.05)
    monkeypatch.setattr(lxc, "STOP_LIMIT", 0.05)

    def start(container: Monitorless, *_: object, **__: object) -> int:
        names.append(container.name)
        return 77

    monkeypatch.setattr(no_memory, "start", start)
    monkeypatch.setattr(criu_dump, "wait_for_dump", lambda *_: None)
    monkeypatch.setattr(ending, "run", lambda *_, **__: pytest.fail("LXC knows nothing of it"))
    return names


def configured(journal: Journal) -> None:
    (journal.path.parent / "web").mkdir()
    (journal.path.parent / "web" / "config").write_text("lxc.uts.name = web\n")
