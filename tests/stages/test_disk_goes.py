# SPDX-License-Identifier: GPL-2.0-or-later
"""The disk with a destination's LXC path goes while it is looked at: nothing is concluded from what was not seen."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest

from migrator.config import container_config
from migrator.copies import after_crash, origins
from migrator.criu import ran_mark
from migrator.errors.containers import DiskAway
from migrator.host import btrfs, lxc
from migrator.record import lxc_disk
from migrator.record.migration_paths import Layout
from migrator.record.states import Event, State
from migrator.transfer.messages import DumpBegin, Running
from stages.steps import abandon, finish_here, left_running, settling, take
from tests import btrfs_roots
from tests.stages.asks import abandons
from tests.stages.away_disk import ID, There, host, make  # noqa: F401 -- fixtures

SETTLING = [(lxc_disk, "is_removed", True), (settling, "_is_ours", True), (ran_mark, "was", True),
            (Layout, "is_own", True), (settling, "_is_ours", False), (ran_mark, "was", False),
            (settling, "clear", False), (settling, "give_back_rootfs", False)]
AT_THE_END = [(lxc_disk, "is_removed"), (Layout, "own_snapshots"), (origins, "has_its_disk"), (settling, "lives_on")]


def goes_before(monkeypatch: pytest.MonkeyPatch, there: There, place: Any, look: str) -> None:
    """The disk is unmounted right before that look, by `umount -l`: no other would while a folder on it is open."""
    honest = getattr(place, look)

    def looks(*given: Any, **more: Any) -> Any:
        if not there.disk.exists():
            assert there.is_open(), "so that umount says that it is busy"
            there.umount()
        return honest(*given, **more)

    monkeypatch.setattr(place, look, looks)


@pytest.mark.parametrize(("place", "look", "marked"), SETTLING, ids=[f"{each[1]}-{each[2]}" for each in SETTLING])
def test_it_may_go_between_two_looks_at_what_a_restore_has_left(
        make: Callable[..., There], monkeypatch: pytest.MonkeyPatch, place: Any, look: str, marked: bool) -> None:
    there = make(Event.RESTORE)
    if marked:
        ran_mark.record(str(ran_mark.mark(there.layout.spool)))
    goes_before(monkeypatch, there, place, look)
    with pytest.raises(DiskAway):
        settling.settle(there.migration)
    assert there.migration.state is State.RESTORING
    monkeypatch.undo()
    there.mount()
    assert there.layout.rootfs.is_dir() and ran_mark.was(ran_mark.mark(there.layout.spool)) is marked


@pytest.mark.parametrize(("place", "look"), AT_THE_END, ids=[look for _, look in AT_THE_END])
def test_or_at_what_has_run(make: Callable[..., There], monkeypatch: pytest.MonkeyPatch, place: Any, look: str) -> None:
    """Another container seems to stand in its place; a process of its own lives on there."""
    there = make(Event.RESTORE, Event.RESTORED)
    container_config.unfence(there.layout.container, ID)
    there.layout.rootfs.rename(there.layout.container / "put by")
    monkeypatch.setattr(lxc, "container_processes", lambda _: [4711])
    btrfs_roots.are(monkeypatch, lambda _: True)
    monkeypatch.setattr(left_running, "is_in_own", lambda layout, _: bool(layout.own_snapshots()))
    goes_before(monkeypatch, there, place, look)
    with pytest.raises(DiskAway):
        settling.is_gone(there.migration)
    assert there.disk.exists()


def test_or_at_the_mark_that_it_has_stopped(make: Callable[..., There], monkeypatch: pytest.MonkeyPatch) -> None:
    """So it is not said to run, and the source's memory is not ended for that."""
    there = make(Event.RESTORE, Event.RESTORED)
    ran_mark.record(str(ran_mark.mark(there.layout.spool)))
    goes_before(monkeypatch, there, ran_mark, "was")
    with pytest.raises(DiskAway):
        finish_here.running(there.service, Running(id=ID))


def test_or_at_what_was_defined(make: Callable[..., There], monkeypatch: pytest.MonkeyPatch) -> None:
    there = make()
    there.migration.state = State.IMPORTED
    goes_before(monkeypatch, there, origins, "whose")
    with pytest.raises(DiskAway):
        take.dump_begin(there.service, DumpBegin(id=ID, attempt=2))
    assert there.migration.state is State.IMPORTED


def test_or_at_its_images(make: Callable[..., There], monkeypatch: pytest.MonkeyPatch) -> None:
    there = make()
    goes_before(monkeypatch, there, origins, "whose")
    assert after_crash.can_be_restored(there.migration)
    assert there.disk.exists()


@pytest.mark.parametrize("look", [(after_crash, "images_are_here"), (lxc_disk, "_opened"), (origins, "whose")],
                         ids=lambda look: look[1])
def test_or_come_between_two_of_them(make: Callable[..., There], monkeypatch: pytest.MonkeyPatch,
                                     look: tuple[Any, str]) -> None:
    """At boot: what was looked for before it was mounted is not gone."""
    there = make()
    there.umount()
    honest = getattr(*look)

    def comes_behind(*given: Any, **more: Any) -> Any:
        found = honest(*given, **more)
        if there.disk.exists():
            there.mount()
        return found

    monkeypatch.setattr(*look, comes_behind)
    assert after_crash.can_be_restored(there.migration)


def test_or_before_its_end_is_recorded(make: Callable[..., There], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its fence would stay, and all of it not be known to be on that disk."""
    there = make(Event.RESTORE, Event.RESTORED)
    goes_before(monkeypatch, there, settling, "stands_fenced")
    with pytest.raises(DiskAway):
        finish_here.end_here(there.migration)
    assert there.migration.state is State.RESTORED


def test_or_while_it_is_removed(make: Callable[..., There], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of it there goes later."""
    there = make()
    monkeypatch.setattr(btrfs, "delete", lambda path: shutil.rmtree(path, ignore_errors=True))
    with monkeypatch.context() as away:
        goes_before(away, there, Layout, "own_snapshots")
        assert abandon.abandon(there.service, abandons()).state == "abandoning"
    there.mount()
    assert abandon.abandon(there.service, abandons()).state == "abandoned"
    assert not there.layout.own_snapshots() and not there.layout.container.exists()
