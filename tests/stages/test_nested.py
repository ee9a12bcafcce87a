# SPDX-License-Identifier: GPL-2.0-or-later
"""Subvolumes inside a root file system: no snapshot takes them along, so none is lost without a word."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from migrator.config import container_config
from migrator.copies import origins
from migrator.errors.containers import ContainerChanged
from migrator.errors.data import SnapshotFailed
from migrator.errors.outcomes import SourceStartedAgain
from migrator.host import btrfs, lxc
from migrator.preflight.facts import container_facts
from migrator.record.detail import Figures
from migrator.record.journal import Journal, Migration
from migrator.record.migration_paths import Layout
from migrator.record.states import Event, Role, State
from migrator.transfer.rpc import Connection
from stages import cleanup
from stages.steps import changed_since, drive_result, earlier_stay, thaw_again
from stages.steps.cleaner import Cleaner
from stages.steps.drive_move import Move
from stages.steps.options import MoveOptions, MoveRequest, NamedContainer, StandstillOptions
from stages.steps.standstill import Standstill
from tests.stages.handovers import Plain
from tests.stages.journals import dumping, journal  # noqa: F401 -- a fixture
from tests.stages.nested_subvolumes import Util, moved, subvolume, util  # noqa: F401 -- fixtures
from tests.stages.offers import There

# --- they are seen --------------------------------------------------------------------------------------------


def test_one_that_goes_meanwhile_does_not_hide_the_others(tmp_path: Path, util: Util) -> None:
    subvolume(subvolume(tmp_path / "rootfs") / "var/lib/keep")
    util.fails = btrfs.NESTED_TRIES - 1
    assert btrfs.nested(tmp_path / "rootfs") == ["var/lib/keep"]


def test_what_cannot_be_told_is_no_none(tmp_path: Path, util: Util, monkeypatch: pytest.MonkeyPatch) -> None:
    rootfs = subvolume(tmp_path / "rootfs")
    monkeypatch.setattr(container_facts, "filesystem", lambda _: "btrfs")
    assert container_facts.look_at_rootfs(rootfs, full=False).nested_unknown == ""
    util.fails = btrfs.NESTED_TRIES
    found = container_facts.look_at_rootfs(rootfs, full=False)
    assert found.nested == () and "Could not look up the inode" in found.nested_unknown


class Stopped(Plain):
    """Takes the disk alone."""

    def take(self) -> Figures:
        self.standstill.send_increment()
        return Figures()

    def stop_clock(self) -> None: ...


@pytest.fixture
def migration(journal: Journal, util: Util, monkeypatch: pytest.MonkeyPatch) -> Migration:
    monkeypatch.setattr(btrfs, "sync", lambda _: None)
    monkeypatch.setattr(lxc.Container, "rootfs", subvolume(journal.path.parent / "web" / "rootfs"))
    monkeypatch.setattr(thaw_again, "thaw_source", lambda _: False)
    monkeypatch.setattr(origins, "is_there", lambda _: True)
    made = dumping(journal)
    made.move(Event.THAW)
    return made


def test_one_that_was_made_since_the_preflight_stops_the_move(migration: Migration) -> None:
    subvolume(migration.lxcpath / "web" / "rootfs" / "srv" / "made")
    with pytest.raises(SourceStartedAgain) as raised:
        Stopped(migration).run()
    assert isinstance(raised.value.cause, ContainerChanged) and "srv/made" in str(raised.value)
    assert migration.state is State.PREPARED


def test_nor_does_it_go_on_where_that_cannot_be_told(migration: Migration, util: Util) -> None:
    util.fails = 100
    with pytest.raises(SourceStartedAgain) as raised:
        Stopped(migration).run()
    assert isinstance(raised.value.cause, SnapshotFailed)


@pytest.mark.parametrize("code", ["nested-subvolume", "nested-unknown", "clock-difference"])
def test_who_has_said_that_they_may_stay_behind_is_not_asked_again(
        migration: Migration, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    subvolume(migration.lxcpath / "web" / "rootfs" / "srv" / "made")
    asked: list[Path] = []

    def nested(path: Path) -> list[str]:
        asked.append(path)
        return []

    monkeypatch.setattr(btrfs, "nested", nested)
    changed_since.refuse_nested(migration, Stopped(migration).standstill.container.rootfs, (code,))
    assert bool(asked) is (code == "clock-difference")


def test_what_is_ignored_comes_with_the_command(migration: Migration) -> None:
    container = lxc.Container.__new__(lxc.Container)
    container.name, container.lxcpath = "web", migration.lxcpath

    made = Standstill(StandstillOptions(ignore=("nested-subvolume",)), migration, container,
                      cast("Connection", There({})))
    assert made.ignore == ("nested-subvolume",)


# --- and stay -------------------------------------------------------------------------------------------------


def test_a_subvolume_is_not_deleted_with_what_is_inside(tmp_path: Path, util: Util) -> None:
    rootfs = subvolume(tmp_path / "rootfs")
    subvolume(rootfs / "srv" / "made")
    with pytest.raises(SnapshotFailed, match="it has subvolumes inside: srv/made"):
        btrfs.delete(rootfs)
    assert util.deleted == []
    btrfs.delete(rootfs, inner=True)
    assert util.deleted == [rootfs]


@pytest.mark.parametrize("dry_run", [True, False])
def test_cleanup_leaves_the_copy_that_has_some(journal: Journal, moved: Layout, util: Util, dry_run: bool) -> None:
    subvolume(moved.rootfs / "srv" / "made")
    cleaner = Cleaner(dry_run=dry_run)
    cleanup.clean_container(cleaner, journal, "web", moved.lxcpath, keep_copy=False)
    assert util.deleted == [] and cleaner.removed == []
    assert cleaner.left == [str(moved.rootfs / "srv" / "made")]
    assert container_config.fence_of((moved.container / "config").read_text()) == moved.id


def test_cleanup_removes_the_copy_that_has_none(journal: Journal, moved: Layout, util: Util) -> None:
    cleaner = Cleaner(dry_run=False)
    cleanup.clean_container(cleaner, journal, "web", moved.lxcpath, keep_copy=False)
    assert util.deleted == [moved.rootfs] and cleaner.left == []


@pytest.mark.parametrize("kind", ["old", "ran"])
def test_cleanup_leaves_what_was_put_aside(journal: Journal, moved: Layout, util: Util, kind: str) -> None:
    aside = moved.work / f"00000001.{kind}"
    rootfs = subvolume(aside if kind == "ran" else aside / "rootfs")
    inner = subvolume(rootfs / "srv" / "made")
    cleaner = Cleaner(dry_run=False)
    cleanup.clean_container(cleaner, journal, "web", moved.lxcpath, keep_copy=False)
    assert util.deleted == [moved.rootfs] and cleaner.left == [str(inner)] and inner.is_dir()


@pytest.mark.parametrize("kind", ["old", "ran"])
def test_cleanup_leaves_what_something_lives_in(journal: Journal, moved: Layout, util: Util, kind: str,
                                                monkeypatch: pytest.MonkeyPatch,
                                                capfd: pytest.CaptureFixture[str]) -> None:
    """As a container that somebody has made of what was put aside."""
    aside = moved.work / f"00000001.{kind}"
    rootfs = subvolume(aside if kind == "ran" else aside / "rootfs")
    monkeypatch.setattr(lxc, "lives_in", lambda name, at: (name, at) == ("web", rootfs))
    cleaner = Cleaner(dry_run=False)
    cleanup.clean_container(cleaner, journal, "web", moved.lxcpath, keep_copy=False)
    assert util.deleted == [moved.rootfs] and str(aside) not in cleaner.removed
    assert f"{rootfs} stays" in capfd.readouterr().err.replace("\n", "")


def test_finish_leaves_what_something_lives_in(journal: Journal, moved: Layout, util: Util,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origins, "is_superseded", lambda *_: True)
    came = journal.create(id="00000002", role=Role.DESTINATION, name="web", lxcpath=moved.lxcpath, peer="hosta",
                          event=Event.RECEIVE, rounds=[])
    here = Layout(moved.lxcpath, "web", came.id)
    rootfs = subvolume(here.old / "rootfs")
    (here.old / "config").write_text("lxc.uts.name = web\n")
    monkeypatch.setattr(lxc, "lives_in", lambda name, at: (name, at) == ("web", rootfs))
    earlier_stay.drop(came, here, here.old)
    assert util.deleted == [] and rootfs.is_dir() and (here.old / "config").is_file()
    cleaner = Cleaner(dry_run=True)
    cleanup._clean_folder(cleaner, journal, here.work, set())
    assert cleaner.kept == [str(here.old)] and cleaner.removed == []


@pytest.mark.parametrize("told", [True, False])
def test_finish_keeps_the_copy_of_an_earlier_stay_that_has_some(
        journal: Journal, moved: Layout, util: Util, monkeypatch: pytest.MonkeyPatch, told: bool) -> None:
    """Also where it cannot be told whether it has."""
    monkeypatch.setattr(origins, "is_superseded", lambda *_: True)
    came = journal.create(id="00000002", role=Role.DESTINATION, name="web", lxcpath=moved.lxcpath, peer="hosta",
                          event=Event.RECEIVE, rounds=[])
    here = Layout(moved.lxcpath, "web", came.id)
    here.make_folder()
    rootfs = subvolume(here.old / "rootfs")
    (here.old / "config").write_text("lxc.uts.name = web\n")
    if told:
        subvolume(rootfs / "srv" / "made")
    else:
        util.fails = 100
    earlier_stay.drop(came, here, here.old)
    kept = here.set_aside()
    assert util.deleted == [] and len(kept) == 1 and (kept[0] / ".subvolume").exists()


@pytest.mark.parametrize("stays", [True, False])
def test_a_move_says_whether_its_source_was_undefined(journal: Journal, moved: Layout, util: Util, stays: bool) -> None:
    if stays:
        subvolume(moved.rootfs / "srv" / "made")
    migration = journal.by_id(moved.id, Role.SOURCE)
    assert migration
    migration.note("host", destination_host="hostb")
    container = lxc.Container.__new__(lxc.Container)
    container.name, container.lxcpath = "web", moved.lxcpath
    container.config_file = moved.container / "config"  # type: ignore[misc]
    request = MoveRequest(NamedContainer("web"), "root@hostb")
    options = MoveOptions(undefine_source=True)
    done = drive_result.result(Move("migrate", request, options, journal, container, migration))
    assert ("The stopped copy is kept here until: migrator cleanup web" in done.text) is stays
    assert (str(moved.container) in done.data["removed"]) is not stays
