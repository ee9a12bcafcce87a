# SPDX-License-Identifier: GPL-2.0-or-later
"""What stands on the destination in the place of what has run there: another container, or a snapshot of it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from migrator.base import log
from migrator.config import container_config, include_copies
from migrator.copies import origins
from migrator.errors.containers import AlreadyRuns, GoneThere
from migrator.errors.data import NotBtrfs
from migrator.errors.ownership import TwoCopies
from migrator.host import btrfs, lxc, subvolume_uuids
from migrator.record.journal import Migration
from migrator.record.migration_paths import Layout
from migrator.record.states import Event, State
from migrator.transfer.messages import Done, Running
from stages.steps import abandon, ask_source, finish_here, force, left_running, resume_destination, settling
from stages.steps.ask_source import Asking
from tests import btrfs_roots
from tests.migrator.layouts import layout_of
from tests.stages.asks import abandons
from tests.stages.removals import asked, no_lxc
from tests.stages.restoring import ID, restoring

__all__ = ["no_lxc", "restoring"]


@pytest.fixture
def replaced(restoring: Migration, monkeypatch: pytest.MonkeyPatch) -> Migration:
    """It has run, was destroyed, and another one of its name was made, which runs; the snapshots are still here."""
    restoring.note("rounds", rounds=[])
    restoring.move(Event.RESTORED)
    folder = layout_of(restoring).container
    folder.mkdir()
    (folder / "config").write_text("lxc.uts.name = web\n")
    monkeypatch.setattr(lxc, "container_processes", lambda _: [])
    monkeypatch.setattr(lxc, "Container", lambda *_: SimpleNamespace(state="RUNNING", rootfs=folder / "rootfs"))
    monkeypatch.setattr(Layout, "own_snapshots", lambda layout: [layout.snapshot(1)])
    return restoring


def test_another_one_in_its_place_is_not_taken_for_it(replaced: Migration) -> None:
    """The last copy is the source's: it is not ended for that."""
    asks: tuple[Callable[[], object], ...] = (lambda: finish_here.running(asked(replaced), Running(id=ID)),
                                              lambda: abandon.abandon(asked(replaced), abandons()))
    for request in asks:
        with pytest.raises(GoneThere):
            request()
    with pytest.raises(GoneThere):
        force.finish_alone(replaced, ID, lambda: pytest.fail("the source is asked"))
    assert replaced.state is State.RESTORED
    assert abandon.abandon(asked(replaced), abandons(gone=True)).known is True
    assert replaced.arrived.given_way


def test_another_one_is_no_second_copy(replaced: Migration, monkeypatch: pytest.MonkeyPatch) -> None:
    """The source was forced to run it again: all that is of its own here goes, and nothing of the other one's."""
    monkeypatch.setattr(ask_source, "state_of_source", lambda *_: State.ROLLED_BACK)
    copies = layout_of(replaced).container / include_copies.FOLDER / "feedface"
    copies.mkdir(parents=True)
    assert resume_destination.go_on(Asking(), replaced).data["state"] is State.FINISHED
    assert copies.is_dir() and (layout_of(replaced).container / "config").read_text() == "lxc.uts.name = web\n"


@pytest.mark.parametrize(("of", "recorded", "ours"), [
    (["ran"], "ran", True), (["kept", "ran"], "ran", True), (["ran", "round"], None, True), (["round"], None, True),
    (["ran"], None, False), (["another"], "ran", False), ([], "ran", False),
])
def test_a_snapshot_of_it_is_still_it(replaced: Migration, monkeypatch: pytest.MonkeyPatch, of: list[str],
                                      recorded: str | None, ours: bool) -> None:
    """Somebody has gone back to what he had put by: what he has made is not removed, but it is no other container."""
    here = layout_of(replaced)
    replaced.note("restored", rootfs_uuid=recorded or "")
    monkeypatch.setattr(btrfs, "is_subvolume", lambda path: path == here.rootfs)
    monkeypatch.setattr(btrfs, "info", lambda path: SimpleNamespace(
        uuid="round" if path == here.snapshot(1) else "new", parent_uuid=""))
    monkeypatch.setattr(subvolume_uuids, "ancestors", lambda _: iter(of))
    assert settling.has_left(replaced) is settling.is_gone(replaced) is not ours
    assert settling.is_replaced(here), "nothing here may be removed"
    monkeypatch.setattr(ask_source, "state_of_source", lambda *_: State.ROLLED_BACK)
    if not ours:
        return
    copies = here.container / include_copies.FOLDER / "feedface"
    copies.mkdir(parents=True)
    assert finish_here.running(asked(replaced), Running(id=ID)) == Done(state=State.RESTORED)
    with pytest.raises(AlreadyRuns):
        abandon.abandon(asked(replaced), abandons(gone=True))
    with pytest.raises(TwoCopies):
        resume_destination.go_on(Asking(), replaced)
    monkeypatch.setattr(lxc, "Container", lambda *_: SimpleNamespace(state="STOPPED", rootfs=here.rootfs))
    monkeypatch.setattr(lxc, "runs_in", lambda *_: False)
    warned: list[str] = []
    monkeypatch.setattr(log, "warning", warned.append)
    assert resume_destination.go_on(Asking(), replaced).data["state"] is State.FINISHED
    assert copies.is_dir() and (here.container / "config").read_text() == "lxc.uts.name = web\n", "it is left alone"
    assert any("Do not start it" in line for line in warned)


@pytest.mark.parametrize("how", ["runs elsewhere", "its own", "fenced", "no snapshots"])
def test_what_may_be_it_has_not_left(replaced: Migration, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(ask_source, "state_of_source", lambda *_: State.ROLLED_BACK)
    if how == "runs elsewhere":  # its folder was renamed
        monkeypatch.setattr(lxc, "container_processes", lambda _: [4711])
        btrfs_roots.are(monkeypatch, lambda _: True)
        monkeypatch.setattr(left_running, "is_in_own", lambda *_: True)
    elif how == "its own":
        monkeypatch.setattr(Layout, "is_own_rootfs", lambda _: True)
    elif how == "fenced":
        container_config.fence(layout_of(replaced).container, "", ID, "no")
    else:  # somebody has removed them: nothing tells
        monkeypatch.setattr(Layout, "own_snapshots", lambda _: [])
    assert finish_here.running(asked(replaced), Running(id=ID)) == Done(state=State.RESTORED)
    with pytest.raises(TwoCopies):
        resume_destination.go_on(Asking(), replaced)


@pytest.mark.parametrize("uuid", ["of its disk", "", None])
def test_which_disk_has_run_is_on_record(restoring: Migration, monkeypatch: pytest.MonkeyPatch,
                                         uuid: str | None) -> None:
    """Its snapshots may be removed, or one of it take its place. What cannot be told keeps nothing back."""
    def rootfs_uuid(migration: Migration) -> str:
        if uuid is None:
            raise NotBtrfs(path=layout_of(migration).rootfs)
        return uuid

    monkeypatch.setattr(origins, "rootfs_uuid", rootfs_uuid)
    settling.record(restoring, 1.0)
    assert restoring.state is State.RESTORED and restoring.copy.rootfs_uuid == (uuid or "")
