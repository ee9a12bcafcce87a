# SPDX-License-Identifier: GPL-2.0-or-later
"""What somebody has started in the place of what is restored, as the copy of an earlier stay with `lxc-start -f`.

LXC calls that RUNNING, and it has this migration's fence: only what it lives in tells whose it is.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from migrator.copies import no_memory
from migrator.criu import at_restore, ran_mark
from migrator.errors.containers import ContainerExists
from migrator.host import btrfs, lxc, subvolume_uuids
from migrator.host.btrfs import Subvolume
from migrator.record import image_folders
from migrator.record.journal import Migration
from migrator.record.states import State
from stages.steps import left_running, put_away, restore_here, settling
from tests import btrfs_roots
from tests.migrator.layouts import layout_of
from tests.stages.killed_restores import Container, acts, container, fence
from tests.stages.restoring import ID, mark, restoring

__all__ = ["acts", "container", "restoring"]
PID = 4711
SNAPSHOT, OWN, EARLIER, PUT_BY = "snapshot", "own", "earlier", "put by"


@pytest.fixture(autouse=True)
def place(restoring: Migration, container: Container, acts: list[str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """LXC has one that runs in the place; a subvolume is a folder with the file `uuid`. Returns the root file system's.
    """
    here = layout_of(restoring)
    restoring.note("begun", memory=True, dad={}, rounds=[])
    monkeypatch.setattr(image_folders, "RUNTIME", restoring.lxcpath / "run")
    monkeypatch.setattr(btrfs, "is_subvolume", lambda path: (path / "uuid").is_file())
    monkeypatch.setattr(btrfs, "info", lambda path: Subvolume(
        path, (path / "uuid").read_text(), "", read_only=True, generation=1,
        parent_uuid=SNAPSHOT if (path / "uuid").read_text() == OWN else ""))
    monkeypatch.setattr(subvolume_uuids, "ancestors", lambda path: iter(
        [OWN, SNAPSHOT] if (path / "uuid").read_text() == PUT_BY else []))
    make(here.snapshot(1), SNAPSHOT)
    container.states = ["RUNNING"]
    container.folder.mkdir()
    monkeypatch.setattr(lxc, "processes", lambda _: [PID])
    monkeypatch.setattr(lxc, "container_processes", lambda _: [])
    monkeypatch.setattr(no_memory, "runs", lambda *_: True)
    btrfs_roots.are(monkeypatch, lambda _: True)
    monkeypatch.setattr(left_running, "is_in_own", lambda *_: False)
    monkeypatch.setattr(left_running, "wait_stopped", lambda _: acts.append("waited"))
    return here.rootfs


def make(path: Path, uuid: str) -> None:
    path.mkdir(parents=True)
    (path / "uuid").write_text(uuid)


def lives(monkeypatch: pytest.MonkeyPatch, place: Path, *, own: bool) -> None:
    """That which runs has the root file system in its place; `own`: which this migration has made."""
    monkeypatch.setattr(lxc, "runs_in", lambda name, rootfs: rootfs == place)
    btrfs_roots.are(monkeypatch, lambda _: True)
    monkeypatch.setattr(left_running, "is_in_own", lambda _, root: own and root == Path(f"/proc/{PID}/root"))


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("memory", [True, False])
def test_it_is_not_taken_for_what_was_restored_nor_ended(
    restoring: Migration, container: Container, acts: list[str], place: Path, monkeypatch: pytest.MonkeyPatch,
    memory: bool, marked: bool,
) -> None:
    """With the mark: the root file system of the earlier stay was given back, and the mark could not be removed."""
    restoring.note("memory", memory=memory)
    make(place, EARLIER)
    lives(monkeypatch, place, own=False)
    if marked:
        mark(restoring)
        images = layout_of(restoring).image_folders()[0]
        images.mkdir(parents=True)
        (images / at_restore.LET_GO).touch()
    settling.settle(restoring)
    assert restoring.state is State.OWNED and not (container.folder / "cgroup.kill").exists()
    assert "waited" not in acts and fence(restoring) == ID
    assert not ran_mark.was(ran_mark.mark(layout_of(restoring).spool)) and layout_of(restoring).set_aside() == []


def test_who_tries_once_more_is_not_told_that_it_runs(restoring: Migration, container: Container, place: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """Its root file system is not taken away beneath it."""
    make(place, EARLIER)
    lives(monkeypatch, place, own=False)
    mark(restoring)
    settling.settle(restoring)
    mark(restoring)
    restore_here.Restore(restoring, 60.0, leave=lambda: 0.0)._keep_what_ran()
    assert str(restoring.state) == "owned" and not ran_mark.was(ran_mark.mark(layout_of(restoring).spool))
    monkeypatch.setattr(lxc, "lives_in", lambda name, rootfs: rootfs == place)
    layout_of(restoring).old.mkdir()
    (layout_of(restoring).old / "config").write_text("lxc.uts.name = web\n")
    with pytest.raises(ContainerExists):
        put_away.put_rootfs_aside(layout_of(restoring))
    assert btrfs.is_subvolume(place)


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("what", ["in its place", "moved away", "a snapshot put by", "no snapshots"])
def test_what_is_its_own_has_come_up(restoring: Migration, container: Container, place: Path,
                                     monkeypatch: pytest.MonkeyPatch, what: str, memory: bool) -> None:
    """Also what an older version has restored, which made no mark; or where somebody has gone back to a snapshot."""
    restoring.note("memory", memory=memory)
    make(place, {"in its place": OWN, "a snapshot put by": PUT_BY}.get(what, EARLIER))
    lives(monkeypatch, place, own=what in ("in its place", "moved away"))
    if what == "no snapshots":  # nothing else tells
        (layout_of(restoring).snapshot(1) / "uuid").unlink()
        mark(restoring)
    settling.settle(restoring)
    assert str(restoring.state) == "restored" and not (container.folder / "cgroup.kill").exists()


@pytest.mark.parametrize("own", [True, False])
def test_what_a_failed_restore_has_left_is_ended_and_nothing_else(
    restoring: Migration, container: Container, place: Path, monkeypatch: pytest.MonkeyPatch, own: bool,
) -> None:
    make(place, OWN if own else EARLIER)
    lives(monkeypatch, place, own=own)
    settling.clear(restoring)
    assert (container.folder / "cgroup.kill").exists() is own
