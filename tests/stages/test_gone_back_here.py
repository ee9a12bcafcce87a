# SPDX-License-Identifier: GPL-2.0-or-later
"""What was brought to a stand on the source, and somebody has gone back there to what he had put by (lxc-snapshot -r).

LXC destroys the container with its fence for that, and makes one of a snapshot, without.
"""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from migrator.config import container_config
from migrator.copies import after_crash, autostart, bases, ending, no_memory, origins, second_start, standing
from migrator.criu import criu_dump
from migrator.errors.containers import OutOfOrder
from migrator.errors.memory import StartFailed
from migrator.host import btrfs, cgroups, lxc, monitor_socket, network, roots, subvolume_uuids
from migrator.host.btrfs import Subvolume
from migrator.record import container_lock
from migrator.record.journal import Journal, Migration
from migrator.record.migration_paths import Layout
from migrator.record.states import Event, State
from migrator.remote.answering import Service
from migrator.transfer.messages import AskSourceState
from migrator.transfer.rpc import Connection
from stages.steps import ask_source, end_copy, give_back
from tests import btrfs_roots
from tests.stages.journals import journal  # noqa: F401 -- a fixture
from tests.stages.monitorless import cgroup, frozen, init  # noqa: F401 -- fixtures
from tests.stages.standing import OTHER_BOOT, Known, There, config, handed_over, known  # noqa: F401 -- a fixture

is_source = origins.is_source
OWN, PUT_BY, MADE, TEMPLATE = "own", "put by", "made", "template"
STANDS = {"a snapshot of what was put by": [PUT_BY, OWN], "a snapshot of it": [OWN], "another one": [TEMPLATE],
          "one that is no snapshot": []}
OURS = ["a snapshot of what was put by", "a snapshot of it"]


@pytest.fixture(autouse=True)
def disk(monkeypatch: pytest.MonkeyPatch, known: type[Known]) -> list[str]:
    """What the root file system in its place is a snapshot of; that is none of the migration's own."""
    of = [PUT_BY, OWN]
    monkeypatch.setattr(origins, "is_source", is_source)
    monkeypatch.setattr(btrfs, "is_subvolume", lambda _: True)
    monkeypatch.setattr(btrfs, "info", lambda path: Subvolume(path, MADE, "", read_only=False, generation=1))
    monkeypatch.setattr(subvolume_uuids, "ancestors", lambda _: iter(of))
    return of


@pytest.fixture
def migration(journal: Journal, cgroup: Path, init: subprocess.Popen[bytes]) -> Migration:
    """It was stopped, without its memory; nothing has a fence."""
    found = handed_over(journal, cgroup, init.pid, fence=False, boot=OTHER_BOOT, memory=False, rootfs_uuid=OWN,
                        stopping=True)
    found.move(Event.TAKEN)
    return found


def fence(migration: Migration) -> str:
    return container_config.fence_of(config(migration).read_text())


@pytest.mark.parametrize("stands", STANDS)
@pytest.mark.parametrize("runs", [True, False])
def test_what_is_made_of_it_counts_as_it(migration: Migration, init: subprocess.Popen[bytes], known: type[Known],
                                         disk: list[str], stands: str, runs: bool) -> None:
    """It gets a fence, and where it runs the destination gets no word. Another one is nothing to the migration."""
    disk[:] = STANDS[stands]
    known.pid = init.pid if runs else 0
    refused = runs and stands in OURS
    if refused:
        with pytest.raises(OutOfOrder, match="runs on") as raised:
            standing.require(migration, "restore-dump")
        assert raised.value.hint == "Next: migrator rollback web"
    else:
        standing.require(migration, "restore-dump")
    assert fence(migration) == (migration.id if stands in OURS else "")
    assert ("It runs here: " in after_crash.note(migration)) is refused


def test_who_asks_hears_that_it_runs(migration: Migration, init: subprocess.Popen[bytes], known: type[Known],
                                     monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(container_lock, "LOCKS", tmp_path / "lock")
    monkeypatch.setattr(autostart, "under_way", lambda: None)
    known.pid = init.pid
    with contextlib.ExitStack() as stack:
        service = Service(migration.journal, stack)
        with pytest.raises(OutOfOrder, match="runs on"):
            ask_source.source_state(service, AskSourceState(id=migration.id, within=90.0))
        known.pid = 0
        assert ask_source.source_state(service, AskSourceState(id=migration.id, within=90.0)).leave == 90.0


def test_an_older_versions_copy_is_not_known_by_that(migration: Migration, init: subprocess.Popen[bytes],
                                                     known: type[Known]) -> None:
    """Behind a fence of ours `cleanup` would take it for what has left: only what is on record tells it from that."""
    migration.note("older", rootfs_uuid="")
    known.pid = init.pid
    standing.require(migration, "restore-dump")
    assert fence(migration) == ""


@pytest.mark.parametrize("finishing", [True, False])
def test_it_is_not_ended(migration: Migration, init: subprocess.Popen[bytes], known: type[Known],
                         monkeypatch: pytest.MonkeyPatch, finishing: bool) -> None:
    monkeypatch.setattr(bases, "prune", lambda _: None)
    if finishing:
        migration.move(Event.FINISH)
    known.pid = init.pid
    there = There(State.RESTORED)
    with pytest.raises(OutOfOrder, match="started it here too") as raised:
        end_copy.carry_out(migration, cast("Connection", there))
    assert raised.value.hint.startswith(f"Next: lxc-stop -P {migration.lxcpath} -n web -- and then: migrator finish")
    assert "finish" not in there.asked and init.poll() is None
    known.pid = 0
    end_copy.carry_out(migration, cast("Connection", there))
    assert str(migration.state) == "finished" and fence(migration) == migration.id
    went = migration.journal.by_id(migration.id, migration.role)
    assert went and origins.is_another_disk(went.journal, config(migration), migration.lxcpath / "web" / "rootfs")


def test_a_rollback_leaves_what_runs_alone(migration: Migration, init: subprocess.Popen[bytes], known: type[Known],
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> Any:
        pytest.fail("it is started, or ended")

    monkeypatch.setattr(no_memory, "start", never)
    monkeypatch.setattr(ending, "stop", never)
    monkeypatch.setattr(network, "announce", lambda *_: SimpleNamespace(join=lambda: None))
    monkeypatch.setattr(no_memory, "runs", lambda *_: True)
    known.pid = init.pid
    with pytest.raises(OutOfOrder):
        standing.require(migration, "restore-dump")
    give_back.roll_back(migration, lambda: "")
    assert str(migration.state) == "rolled-back" and fence(migration) == "" and init.poll() is None


@pytest.mark.parametrize("dumping", [True, False])
@pytest.mark.parametrize("stands", STANDS)
def test_what_is_frozen_is_not_thawed_beside_it(journal: Journal, cgroup: Path, init: subprocess.Popen[bytes],
                                                known: type[Known], disk: list[str], monkeypatch: pytest.MonkeyPatch,
                                                stands: str, dumping: bool) -> None:
    """LXC had lost it with its monitor, and what was made of the snapshot was started: that has neither its root nor
    its cgroup. Nobody is asked, as LXC's monitor may never answer. Another one of its name keeps nothing frozen.
    """
    beside = [os.getpid()]  # which nothing here ends
    monkeypatch.setattr(lxc, "container_processes", lambda _: beside)
    monkeypatch.setattr(lxc, "cgroup_of", lambda _: Path("/sys/fs/cgroup/lxc.payload.web-1"))
    monkeypatch.setattr(second_start, "_cgroup", lambda _: "0::/lxc.payload.web-1\n")
    monkeypatch.setattr(second_start, "is_start", lambda _: True)
    monkeypatch.setattr(roots, "is_subvolume", lambda _: True)
    btrfs_roots.are(monkeypatch, lambda _: True)
    monkeypatch.setattr(roots, "is_in", lambda *_: False)
    monkeypatch.setattr(monitor_socket, "may_be_its", lambda *_: True)
    monkeypatch.setattr(criu_dump, "wait_for_dump", lambda *_: None)
    monkeypatch.setattr(bases, "last_copy", lambda *_, **__: [])
    disk[:] = STANDS[stands]
    if dumping:
        migration = frozen(journal, cgroup, init.pid, rootfs_uuid=OWN)
        config(migration).parent.mkdir()
        config(migration).write_text("lxc.start.auto = 1\n")
    else:
        migration = handed_over(journal, cgroup, init.pid, fence=False, rootfs_uuid=OWN)
    Layout.of(migration).folder.mkdir(parents=True)
    known.pid = beside[0]
    if stands in OURS:
        for _ in range(2):  # however often
            with pytest.raises(StartFailed, match=rf"a second time \(process {known.pid}\)") as raised:
                give_back.roll_back(migration, lambda: "")
            assert f"lxc-stop -P {migration.lxcpath} -n web" in str(raised.value)
            assert f"echo 1 >{cgroup}/cgroup.kill" in str(raised.value)
            # It may be a clone of that name, whose monitor was killed.
            assert "by its cgroup, /sys/fs/cgroup/lxc.payload.web-1, what process" in str(raised.value)
            assert (cgroup / "cgroup.freeze").read_text() == "1"
        known.pid = 0
        beside[:] = [init.pid]  # which would wait for itself, where it watches what is opened on its disk
        monkeypatch.setattr(cgroups, "holds", lambda top, _: top == str(cgroup))
        monkeypatch.setattr(subvolume_uuids, "ancestors", lambda _: pytest.fail("the frozen one is asked"))
    monkeypatch.setattr(known, "init_pid", property(lambda _: pytest.fail("LXC is asked before the thaw")))
    give_back.roll_back(migration, lambda: "")
    assert (cgroup / "cgroup.freeze").read_text() == "0" and str(migration.state) == "rolled-back"


def test_what_has_moved_away_for_good_and_is_in_use(migration: Migration, init: subprocess.Popen[bytes],
                                                    known: type[Known], disk: list[str]) -> None:
    """A destination that has been set back asks once more. It gets no fence here, nor that host its word."""
    migration.move(Event.FINISH)
    migration.move(Event.FINISHED)
    with pytest.raises(OutOfOrder, match="may run here again"):
        standing.require(migration, "restore-dump")
    assert fence(migration) == ""
    disk[:] = [TEMPLATE]
    standing.require(migration, "restore-dump")
