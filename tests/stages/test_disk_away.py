# SPDX-License-Identifier: GPL-2.0-or-later
"""The disk with a destination's LXC path is not there: nothing on it is taken for removed, or for never made."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from migrator.config import container_config
from migrator.copies import after_crash, bases, remains
from migrator.criu import ran_mark
from migrator.errors.containers import DiskAway, GoneThere
from migrator.host import btrfs
from migrator.record import lxc_disk
from migrator.record.migration_paths import Layout
from migrator.record.states import Event, State
from migrator.transfer import messages
from migrator.transfer.messages import AskState, Done, DumpBegin, Finish, Running
from stages import restore_dump
from stages.steps import (
    abandon,
    arguments,
    ask_source,
    finish_here,
    force,
    give_back,
    prologue,
    put_away,
    restore_over,
    resume_destination,
    settling,
    stopped_here,
    take,
    take_disk,
)
from stages.steps.ask_source import Asking
from stages.steps.options import NamedContainer
from tests.stages.asks import abandons
from tests.stages.away_disk import ID, There, host, make  # noqa: F401 -- fixtures

BOOT = Asking()


# What is asked for, of whom nobody can know what lies on that disk.
ASKED: dict[str, Callable[[There], object]] = {
    "at boot": lambda there: resume_destination.go_on(BOOT, there.migration),
    "rollback": lambda there: abandon.abandon(there.service, abandons()),
    "rollback --force": lambda there: abandon.abandon(there.service, abandons(gone=True)),
    "rollback there": lambda there: abandon.give_up_here(there.migration),
}
BEFORE_THE_END: dict[str, Callable[[There], object]] = {
    "running": lambda there: finish_here.running(there.service, Running(id=ID)),
    "finish": lambda there: finish_here.finish(there.service, Finish(id=ID)),
    "finish --force there": lambda there: force.finish_alone(there.migration, ID, lambda: pytest.fail("is asked")),
}


def restore_asked(there: There) -> object:
    asked = messages.Restore(id=ID, limit=60)
    return restore_over.restore_for_source(there.service, asked, lambda: pytest.fail("goes on"))


@pytest.mark.parametrize("asked", [*ASKED, "restore"])
@pytest.mark.parametrize("marked", [True, False])
def test_what_a_killed_restore_has_left_is_not_settled(make: Callable[..., There], asked: str, marked: bool) -> None:
    """The mark that it has run may be on that disk."""
    there = make(Event.RESTORE)
    if marked:
        ran_mark.record(str(ran_mark.mark(there.layout.spool)))
    there.umount()
    with pytest.raises(DiskAway, match=str(there.pool)):
        (ASKED | {"restore": restore_asked})[asked](there)
    assert there.migration.state is State.RESTORING
    assert str(there.pool) in after_crash.note(there.migration)
    there.mount()
    assert ran_mark.was(ran_mark.mark(there.layout.spool)) is marked
    assert there.layout.rootfs.is_dir()


@pytest.mark.parametrize("asked", [*ASKED, *BEFORE_THE_END])
def test_what_has_run_was_not_destroyed(make: Callable[..., There], asked: str) -> None:
    """No fence stands on it any more: it is started with that disk, and the source's copy must not run then."""
    there = make(Event.RESTORE, Event.RESTORED)
    container_config.unfence(there.layout.container, ID)
    there.umount()
    with pytest.raises(DiskAway):
        (ASKED | BEFORE_THE_END)[asked](there)
    assert there.migration.state is State.RESTORED
    there.mount()
    assert finish_here.running(there.service, Running(id=ID)) == Done(state=State.RESTORED)


@pytest.mark.parametrize("dry_run", [False, True])
def test_what_is_not_to_be_seen_is_not_said_to_run(make: Callable[..., There], monkeypatch: pytest.MonkeyPatch,
                                                   dry_run: bool) -> None:
    """By who types restore-dump once more."""
    there = make(Event.RESTORE, Event.RESTORED)
    container_config.unfence(there.layout.container, ID)
    monkeypatch.setattr(arguments, "require_root", lambda _: None)
    monkeypatch.setattr(prologue, "Journal", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(prologue, "locked", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(prologue, "arrived", lambda *_: there.migration)
    monkeypatch.setattr(stopped_here, "is_stopped", lambda _: False)
    options = restore_dump.RestoreDumpOptions(NamedContainer("web", str(there.pool)), dry_run=dry_run)
    assert "already runs here" in restore_dump.run(options).text
    there.umount()
    with pytest.raises(DiskAway):
        restore_dump.run(options)


@pytest.mark.parametrize("what", ["nothing", "another container"])
def test_another_disk_is_no_answer(make: Callable[..., There], what: str) -> None:
    """What lies there belongs to a stranger, or below the mount point."""
    there = make(Event.RESTORE, Event.RESTORED)
    there.umount()
    if what == "nothing":
        there.pool.rmdir()
    else:
        there.layout.container.mkdir()
        (there.layout.container / "config").write_text("lxc.uts.name = web\n")
    for asked in (ASKED["at boot"], BEFORE_THE_END["running"], ASKED["rollback --force"]):
        with pytest.raises(DiskAway):
            asked(there)
    assert there.migration.state is State.RESTORED


def test_a_disk_that_cannot_be_read_is_no_answer(make: Callable[..., There], monkeypatch: pytest.MonkeyPatch) -> None:
    there = make(Event.RESTORE, Event.RESTORED)
    there.layout.rootfs.joinpath("uuid").write_text("another")
    (there.layout.container / "config").unlink()
    honest = os.lstat

    def lstat(path: Any, **where: Any) -> os.stat_result:
        if Path(path).name == "config":
            raise OSError(errno.EIO, "Input/output error")
        return honest(path, **where)

    monkeypatch.setattr(os, "lstat", lstat)
    with pytest.raises(DiskAway, match="Input/output error"):
        lxc_disk.is_removed(there.layout)


def test_it_may_be_mounted_between_two_looks(make: Callable[..., There], monkeypatch: pytest.MonkeyPatch) -> None:
    """At boot."""
    there = make(Event.RESTORE, Event.RESTORED)
    container_config.unfence(there.layout.container, ID)
    there.umount()
    honest = os.path.lexists

    def lexists(path: Any) -> bool:
        found = honest(path)
        if Path(path).name == "web" and there.disk.exists():
            there.mount()
        return found

    monkeypatch.setattr(os.path, "lexists", lexists)
    assert finish_here.running(there.service, Running(id=ID)) == Done(state=State.RESTORED)
    assert not there.disk.exists()


def test_what_has_arrived_is_not_given_up_for_it(make: Callable[..., There], monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory may be on that disk, and the source have lost its own; but who types rollback gets it."""
    there = make()
    monkeypatch.setattr(ask_source, "leave_for", lambda *_, **__: 1e9)
    there.umount()
    assert take_disk.state(there.service, AskState(id=ID)).images is True
    for asked in (ASKED["at boot"], restore_asked):
        with pytest.raises(DiskAway):
            asked(there)
    assert there.migration.state is State.OWNED
    assert str(there.pool) in after_crash.note(there.migration)
    for _ in range(2):
        assert abandon.abandon(there.service, abandons()).state == "abandoning"
    there.mount()
    assert container_config.fence_of((there.layout.container / "config").read_text()) == ID
    monkeypatch.setattr(btrfs, "delete", lambda path: shutil.rmtree(path, ignore_errors=True))
    with monkeypatch.context() as killed:
        killed.setattr(Layout, "tidy", lambda _: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            abandon.abandon(there.service, abandons())
    abandon.abandon(there.service, abandons())
    assert str(there.migration.state) == "abandoned" and not there.layout.container.exists()


@pytest.mark.parametrize("rounds", [0, 1])
def test_nor_while_another_round_arrives(make: Callable[..., There], monkeypatch: pytest.MonkeyPatch,
                                         rounds: int) -> None:
    """What the round before has defined, and put aside, lies there. Before the first no spool may have been made."""
    monkeypatch.setattr(btrfs, "delete", lambda path: shutil.rmtree(path, ignore_errors=True))
    there = make()
    there.migration.state = State.IMPORTED
    there.migration.move(Event.RECEIVE, rounds=[{"uuid": "1"}] * rounds)
    there.umount()
    assert abandon.abandon(there.service, abandons()).state == ("abandoning" if rounds else "abandoned")
    there.mount()
    if rounds:
        assert abandon.abandon(there.service, abandons()).state == "abandoned"
        assert not there.layout.container.exists()


@pytest.mark.parametrize("killed_at", ["images", "old", "snapshots", "spool", "end"])
def test_it_goes_while_that_is_removed(make: Callable[..., There], monkeypatch: pytest.MonkeyPatch,
                                       killed_at: str) -> None:
    """Killed at each step, and at the next try the disk is away."""
    monkeypatch.setattr(btrfs, "delete", lambda path: shutil.rmtree(path, ignore_errors=True))
    there = make()
    with monkeypatch.context() as killed:
        place, name = {"images": (Layout, "drop_images"), "old": (put_away, "give_back_old"),
                       "snapshots": (Layout, "own_snapshots"), "spool": (Layout, "drop_spool"),
                       "end": (Layout, "tidy")}[killed_at]
        killed.setattr(place, name, lambda *_: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            abandon.abandon(there.service, abandons())
    there.umount()
    removed = killed_at in ("spool", "end")  # all but the spool itself
    assert abandon.abandon(there.service, abandons()).state == ("abandoned" if removed else "abandoning")
    there.mount()
    abandon.abandon(there.service, abandons())
    assert there.migration.state is State.ABANDONED
    assert not there.layout.container.exists() and not there.layout.own_snapshots()


def test_it_is_not_sent_again_for_it(make: Callable[..., There]) -> None:
    there = make()
    there.migration.state = State.IMPORTED
    there.umount()
    with pytest.raises(DiskAway):
        take.dump_begin(there.service, DumpBegin(id=ID, attempt=2))
    assert there.migration.state is State.IMPORTED


def test_one_that_is_lost_for_good(make: Callable[..., There]) -> None:
    """The cure leads on: from then on it is as if it had been destroyed there."""
    there = make(Event.RESTORE, Event.RESTORED)
    there.umount()
    with pytest.raises(DiskAway) as away:
        abandon.abandon(there.service, abandons())
    assert f"mkdir -p {there.layout.spool}" in away.value.hint
    there.layout.spool.mkdir(parents=True)
    with pytest.raises(GoneThere):
        abandon.abandon(there.service, abandons())
    assert abandon.abandon(there.service, abandons(gone=True)).known is True
    assert there.migration.arrived.given_way


def test_a_killed_restore_on_one_that_is_lost_for_good(make: Callable[..., There]) -> None:
    there = make(Event.RESTORE)
    there.umount()
    there.layout.spool.mkdir(parents=True)
    abandon.abandon(there.service, abandons())
    assert there.migration.state is State.ABANDONED


def test_the_end_can_be_repeated_though_the_spool_went_with_it(make: Callable[..., There],
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    there = make(Event.RESTORE, Event.RESTORED)
    container_config.unfence(there.layout.container, ID)
    with monkeypatch.context() as killed:
        killed.setattr(bases, "prune", lambda _: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            finish_here.end_here(there.migration)
    assert not there.layout.spool.exists() and there.migration.state is State.FINISHED
    finish_here.end_here(there.migration)


def test_a_migration_that_an_older_version_began(make: Callable[..., There]) -> None:
    there = make(Event.RESTORE, Event.RESTORED)
    there.layout.spool.rename(there.layout.former_spool)
    assert lxc_disk.is_here(there.layout)
    there.layout.drop_spool()
    assert not lxc_disk.is_here(there.layout)


def test_the_disk_is_held_while_what_a_restore_has_left_is_taken_away(make: Callable[..., There],
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    there = make(Event.RESTORE)
    held: list[bool] = []
    monkeypatch.setattr(settling, "_clear", lambda *_: held.append(there.is_open()))
    settling.clear(there.migration)
    assert held == [True] and not there.is_open()


@pytest.mark.parametrize("recorded", ["boot", "init", "pid", ""])
def test_a_fence_that_may_be_on_the_disk_is_to_be_seen(make: Callable[..., There], monkeypatch: pytest.MonkeyPatch,
                                                       recorded: str) -> None:
    """An older version has recorded fewer of these, when it brought the container to a stand."""
    there = make()
    (there.layout.container / "config").unlink()
    of_then = {"boot": "an earlier one", "init": (4711, 99), "pid": 4711}
    there.migration.learn(**{recorded: of_then[recorded]} if recorded else {})
    monkeypatch.setattr(remains, "first_is_here", lambda _: False)
    asked: list[str] = []
    monkeypatch.setattr(bases, "require_seen", lambda migration: asked.append(migration.id))
    give_back._require_fence_seen(there.migration)
    assert asked == ([ID] if recorded else [])
