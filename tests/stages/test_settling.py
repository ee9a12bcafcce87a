# SPDX-License-Identifier: GPL-2.0-or-later
"""What becomes of a container whose restore was never recorded: nothing that may have run is taken away."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import contextlib
import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from migrator.base import boot_clock
from migrator.config import container_config
from migrator.copies import after_crash, no_memory, origins, standing
from migrator.copies.origins import Whose
from migrator.criu import ran_mark, restore
from migrator.errors.connection import ConnectionLost
from migrator.errors.containers import AlreadyRuns, ContainerNotFound
from migrator.errors.ownership import WordOver
from migrator.errors.this_host import JournalBroken
from migrator.host import btrfs, empty_cgroups, lxc
from migrator.record.journal import Migration
from migrator.record.migration_paths import Layout
from migrator.record.states import State
from migrator.transfer import messages
from stages import cleanup
from stages.steps import abandon, restore_over, settling
from stages.steps.cleaner import Cleaner
from tests.stages.restoring import ID, acts, mark, restoring  # noqa: F401 -- fixtures


def test_what_has_run_keeps_its_disk_and_its_fence(restoring: Migration, acts: list[str]) -> None:
    """The source may have been forced to run it again: only who has asked it does more, and only in time."""
    mark(restoring, "an earlier one")
    settling.settle(restoring)
    assert restoring.state is State.RESTORED
    assert acts == ["ended"]
    with pytest.raises(WordOver):
        settling.go_on(restoring, boot_clock.now() - 1)
    assert acts == ["ended"]
    settling.go_on(restoring, boot_clock.now() + 3600)
    assert acts == ["ended", "started", "unfenced"]


def test_the_clock_is_looked_at_last_before_a_start(restoring: Migration, acts: list[str],
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """The word is over while its begin is recorded, and the container stays fenced."""
    mark(restoring, "an earlier one")
    settling.settle(restoring)
    now = [0.0]
    monkeypatch.setattr(boot_clock, "now", lambda: now[0])
    event = Migration._event

    def slow(migration: Migration, *said: Any) -> None:
        now[0] += 100.0
        event(migration, *said)

    monkeypatch.setattr(Migration, "_event", slow)
    with pytest.raises(WordOver):
        settling.go_on(restoring, 60.0)
    assert acts == ["ended"]

    def slow_log(*_: object, anew: bool) -> Path:
        assert anew
        now[0] += 100.0
        return Path("/log")

    monkeypatch.setattr(no_memory, "log_of", slow_log)
    now[0] = 0.0
    with pytest.raises(WordOver):
        settling.go_on(restoring, 160.0)
    assert acts == ["ended"]
    now[0] = 0.0
    settling.go_on(restoring, 260.0)
    assert acts == ["ended", "started", "unfenced"]


@pytest.mark.parametrize("stands", ["itself", "another"])
def test_what_has_run_is_known_without_its_snapshots(restoring: Migration, acts: list[str], stands: str,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody has deleted these: its uuid is on record since it was made."""
    mark(restoring, "an earlier one")
    with restoring.step("rootfs") as made:
        made.rootfs_uuid = "itself"
    monkeypatch.setattr(Layout, "is_own_rootfs", lambda _: False)
    monkeypatch.setattr(btrfs, "is_subvolume", lambda path: path == restoring.lxcpath / "web" / "rootfs")
    monkeypatch.setattr(btrfs, "info", lambda _: SimpleNamespace(uuid=stands))
    settling.settle(restoring)
    assert restoring.state is (State.RESTORED if stands == "itself" else State.OWNED)
    assert ("deleted" in acts) is (stands != "itself")


@pytest.mark.usefixtures("acts")
def test_a_disk_that_does_not_say_whose_it_is_leaves_what_is_on_record(restoring: Migration,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """By that uuid it is known when its snapshots are gone."""
    restoring.note("disk", rootfs_uuid="itself")

    def unreadable(_: Migration) -> str:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(origins, "rootfs_uuid", unreadable)
    settling.record(restoring, 1.0)
    assert restoring.state is State.RESTORED and restoring.copy.rootfs_uuid == "itself"


@pytest.mark.parametrize("running", [True, False])
def test_a_request_over_the_connection_lets_it_go_on_when_the_source_still_waits(
    restoring: Migration, acts: list[str], monkeypatch: pytest.MonkeyPatch, running: bool,
) -> None:
    """Killed, rebooted, and asked by a request that may have lain in a pipe since."""
    mark(restoring, "an earlier one")
    monkeypatch.setattr(lxc, "Container", lambda *_: SimpleNamespace(state="STOPPED"))
    service = SimpleNamespace(migration=lambda _: restoring)

    def leave() -> float:
        if not running:
            raise ConnectionLost(destination="hosta", reason="it is silent")
        return boot_clock.now() + 60

    with contextlib.nullcontext() if running else pytest.raises(ConnectionLost):
        restore_over.restore_for_source(service, messages.Restore(id=restoring.id, limit=60), leave)  # type: ignore[arg-type]
    assert restoring.state is State.RESTORED
    assert acts == (["ended", "started", "unfenced"] if running else ["ended"])


def test_an_abandon_lets_nothing_go_on(restoring: Migration, acts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    mark(restoring, "an earlier one")
    with pytest.raises(AlreadyRuns):
        abandon._abandon(restoring, [])
    assert restoring.state is State.RESTORED and acts == ["ended"]


@pytest.mark.usefixtures("acts")
def test_what_has_run_for_a_moment_is_put_aside(restoring: Migration, monkeypatch: pytest.MonkeyPatch,
                                                capfd: pytest.CaptureFixture[str]) -> None:
    """However often: its users may have been answered."""
    here = Layout.of(restoring)
    monkeypatch.setattr(Layout, "is_own_rootfs", lambda layout: layout.rootfs.exists())
    for number in (1, 2):
        here.rootfs.mkdir(parents=True)
        (here.rootfs / "written").write_text(f"attempt {number}")
        mark(restoring)
        settling.clear(restoring)
        assert not here.rootfs.exists() and not ran_mark.was(ran_mark.mark(here.spool))
        kept = here.work / f"{ID}.ran.{number}"
        assert (kept / "written").read_text() == f"attempt {number}"
        assert str(kept) in capfd.readouterr().err.replace("\n", "")
    note = after_crash.aside_note(restoring)
    assert all(str(kept) in note for kept in here.set_aside()) and len(here.set_aside()) == 2
    cleaner = Cleaner(dry_run=True)
    cleanup._clean_folder(cleaner, restoring.journal, here.work, set())
    assert cleaner.kept == [str(kept) for kept in here.set_aside()]
    assert not set(cleaner.kept) & set(cleaner.removed)
    cleaner = Cleaner(dry_run=True)
    cleanup._clean_folder(cleaner, restoring.journal, here.work, set(), copies=True)
    assert set(cleaner.removed) >= {str(kept) for kept in here.set_aside()}, "with its name"


def test_what_cannot_be_started_any_more_stands_stopped(restoring: Migration, acts: list[str],
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """It is on record that it has stopped; since then its fence was taken away, with its configuration."""
    def none(_: Migration) -> bool:
        raise ContainerNotFound(name="web", lxcpath=restoring.lxcpath)

    mark(restoring, "an earlier one")
    settling.settle(restoring)
    for name in ("stands_fenced", "has_left"):
        monkeypatch.setattr(settling, name, lambda _: False)
    monkeypatch.setattr(after_crash, "has_stopped", lambda _: True)
    for at_work, stands in ((none, True), (lambda _: False, True), (lambda _: True, False)):
        monkeypatch.setattr(settling, "is_at_work", at_work)
        assert settling.stands_stopped(restoring) is stands


def test_what_never_ran_is_removed(restoring: Migration, acts: list[str]) -> None:
    settling.settle(restoring)
    assert restoring.state is State.OWNED
    assert acts == ["ended", "deleted"]


def test_who_is_killed_while_it_is_removed_does_not_take_it_for_one_that_has_run(
    restoring: Migration, acts: list[str],
) -> None:
    path = mark(restoring)
    Layout(restoring.lxcpath, "web", ID).rootfs.mkdir(parents=True)
    settling.clear(restoring)
    assert not ran_mark.was(path)
    settling.settle(restoring)
    assert restoring.state is State.OWNED


def test_a_full_disk_at_the_record_takes_nothing_away(restoring: Migration, acts: list[str],
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    mark(restoring, "an earlier one")

    def full(*_: object, **__: object) -> None:
        raise JournalBroken(path=restoring.journal_path, reason="database or disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(Migration, "move", full)
        with pytest.raises(JournalBroken):
            settling.settle(restoring)
    assert restoring.state is State.RESTORING and "deleted" not in acts
    restoring.refresh()
    settling.settle(restoring)
    assert str(restoring.state) == "restored" and "deleted" not in acts


def test_what_never_ran_is_not_kept_by_a_disk_that_cannot_be_written(restoring: Migration, acts: list[str],
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(settling, "give_back_rootfs", read_only)
    settling.settle(restoring)
    assert str(restoring.state) == "owned"


@pytest.mark.parametrize(("stands", "hook"), [(True, True), (False, True), (False, False)])
def test_a_fence_that_stands_need_not_be_written(restoring: Migration, monkeypatch: pytest.MonkeyPatch,
                                                 stands: bool, hook: bool) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    here = Layout(restoring.lxcpath, "web", ID)
    here.container.mkdir()
    container_config.fence(here.container, "lxc.uts.name = web\n", "ffffffff" if hook and not stands else ID, "no")
    if not hook:  # but the marks are there
        text = (here.container / "config").read_text()
        (here.container / "config").write_text(text.replace("lxc.hook.pre-start = /", "# "))
    monkeypatch.setattr(origins, "whose", lambda *_: Whose.OURS)
    monkeypatch.setattr(container_config, "write_file", read_only)
    monkeypatch.setattr(empty_cgroups, "drop", lambda *_: None)
    monkeypatch.setattr(restore, "clear", lambda _: None)
    container: Any = SimpleNamespace(state="STOPPED")
    with contextlib.nullcontext() if stands else pytest.raises(OSError, match="Read-only"):
        assert settling.end(restoring, container, here)


@pytest.mark.parametrize("fenced_before", [True, False])
def test_a_fence_that_was_taken_away_is_put_back_as_such(restoring: Migration, monkeypatch: pytest.MonkeyPatch,
                                                         fenced_before: bool) -> None:
    """An lxc-autostart that is under way has not read it: a copy gives way once that has ended (test_autostart)."""
    here = Layout(restoring.lxcpath, "web", ID)
    here.container.mkdir()
    config = here.container / "config"
    config.write_text("lxc.uts.name = web\nlxc.start.auto = 1\n")
    if fenced_before:
        container_config.fence(here.container, config.read_text(), ID, "no")
    monkeypatch.setattr(origins, "whose", lambda *_: Whose.OURS)
    monkeypatch.setattr(empty_cgroups, "drop", lambda *_: None)
    monkeypatch.setattr(restore, "clear", lambda _: None)
    container: Any = SimpleNamespace(state="STOPPED")
    for _ in range(2):  # and stays so when it is written anew in the same boot
        assert settling.end(restoring, container, here)
        assert container_config.fence_of(config.read_text()) == ID
        assert standing.is_put_back(restoring) is not fenced_before
