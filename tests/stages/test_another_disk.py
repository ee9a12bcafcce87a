# SPDX-License-Identifier: GPL-2.0-or-later
"""Behind the fence of a copy somebody has put another root file system: nothing says that anybody else has that one."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from migrator.config import container_config, fences
from migrator.copies import after_crash, standing
from migrator.host import btrfs
from migrator.record.journal import KEPT, Journal
from migrator.record.migration_paths import Layout
from migrator.record.states import Event, Role
from stages import cleanup
from stages.steps import finish_here, moved_copy, put_away
from stages.steps.cleaner import Cleaner
from tests.stages.earlier_stays import ARRIVED, ID, LATER, LEFT, begun, clean, journal, put_aside, stands, state  # noqa: F401 -- fixtures

DISKS = ("01234567-89ab-cdef-0123-456789abcdef", "11111111-2222-3333-4444-555555555555")
RECORDED = {"its own": "rootfs", "another disk": "other", "an older version's": ""}  # a folder's name is its uuid
pytestmark = pytest.mark.usefixtures("state")


@pytest.mark.parametrize("stands_there", RECORDED)
def test_the_end_of_a_move_back_keeps_it(journal: Journal, tmp_path: Path, stands_there: str,
                                         capfd: pytest.CaptureFixture[str]) -> None:
    begun(journal, tmp_path, Role.SOURCE, *LEFT, rootfs_uuid=RECORDED[stands_there])
    came = begun(journal, tmp_path, Role.DESTINATION, *ARRIVED, id=LATER, origin=ID)
    here = put_aside(tmp_path, came)
    stays = stands_there == "another disk"
    for _ in range(2):  # as after a kill
        finish_here.end_here(came)
        assert (here.old / "rootfs" / "written").exists() is stays
        assert (here.old / "config").is_file() is stays
        assert here.set_aside() == []
        assert (str(here.old) in after_crash.aside_note(came)) is stays
    assert (str(here.old / "rootfs") in capfd.readouterr().err.replace("\n", "")) is stays


def test_its_containers_name_does_not_remove_it_either(journal: Journal, tmp_path: Path,
                                                       capfd: pytest.CaptureFixture[str]) -> None:
    begun(journal, tmp_path, Role.SOURCE, *LEFT, rootfs_uuid="other")
    came = begun(journal, tmp_path, Role.DESTINATION, *ARRIVED, id=LATER, origin=ID)
    here = put_aside(tmp_path, came)
    finish_here.end_here(came)
    rootfs = here.old / "rootfs"
    assert f"btrfs subvolume delete {rootfs}" in " ".join(capfd.readouterr().err.split())
    for dry_run in (True, False):
        cleaner = Cleaner(dry_run=dry_run)
        cleanup.clean_container(cleaner, journal, "web", tmp_path, keep_copy=False)
        assert cleaner.left == [str(rootfs)] and str(here.old) not in cleaner.removed
        assert (rootfs / "written").exists() and (here.old / "config").is_file()
    assert f"btrfs subvolume delete {rootfs}" in " ".join(capfd.readouterr().err.split())
    shutil.rmtree(rootfs)
    assert str(here.old) in clean(journal, tmp_path) and not here.old.exists(), "nor does it stay for ever"


def test_what_is_of_another_origin_counts_the_same(journal: Journal, tmp_path: Path) -> None:
    begun(journal, tmp_path, Role.SOURCE, *LEFT, rootfs_uuid="other")
    came = begun(journal, tmp_path, Role.DESTINATION, *ARRIVED, id=LATER, origin="ffffffff")
    here = put_aside(tmp_path, came)
    finish_here.end_here(came)
    clean(journal, tmp_path)
    assert (here.old / "rootfs" / "written").exists() and (here.old / "config").is_file()


@pytest.mark.parametrize("way", ["cleanup NAME", "--undefine-source"])
@pytest.mark.parametrize("stands_there", RECORDED)
def test_cleanup_keeps_it_and_its_configuration(journal: Journal, tmp_path: Path, stands_there: str, way: str,
                                                capfd: pytest.CaptureFixture[str]) -> None:
    went = begun(journal, tmp_path, Role.SOURCE, *LEFT, rootfs_uuid=RECORDED[stands_there])
    here = stands(tmp_path)
    stays = stands_there == "another disk"
    for dry_run in (True, False):
        cleaner = Cleaner(dry_run=dry_run)
        if way == "cleanup NAME":
            cleanup.clean_container(cleaner, journal, "web", tmp_path, keep_copy=False)
        else:
            moved_copy.clean_moved(cleaner, went)
        assert (cleaner.left == [str(here.rootfs)]) is stays and (cleaner.removed == []) is stays
        assert ("lxc-destroy" in capfd.readouterr().err) is stays
    assert (here.rootfs / "written").exists() is stays and (here.container / "config").is_file() is stays


@pytest.mark.parametrize("stands_there", RECORDED)
def test_so_where_it_has_given_way(journal: Journal, tmp_path: Path, stands_there: str) -> None:
    came = begun(journal, tmp_path, Role.DESTINATION, *ARRIVED, rootfs_uuid=RECORDED[stands_there])
    came.move(Event.FINISHED, given_way=True)
    here = stands(tmp_path)
    clean(journal, tmp_path)
    assert here.container.exists() is (stands_there == "another disk")


@pytest.mark.parametrize("forgotten", ["by `cleanup --forget`, or with the journal", "by a later migration"])
@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("other", [True, False], ids=["another disk", "its own"])
def test_its_fence_tells_when_the_record_is(journal: Journal, tmp_path: Path, forgotten: str, role: Role, other: bool,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(btrfs, "info", lambda path: SimpleNamespace(uuid=DISKS[other]))
    events = LEFT if role is Role.SOURCE else ARRIVED
    went = begun(journal, tmp_path, role, *events[:-1], rootfs_uuid=DISKS[False], destination_host="hostb")
    here = stands(tmp_path)
    config = here.container / "config"
    if role is Role.SOURCE:
        went.move(Event.FINISH)
        container_config.fence(here.container, config.read_text(), ID, standing.message(went))
        went.move(Event.FINISHED)
    else:
        went.move(events[-1])
        standing.fence_anew(went, config.read_text(), f"web runs on hosta again. {container_config.SUPERSEDED} web")
        went.move(Event.FINISHED, given_way=True)
    assert fences.refuses(here.container, config.read_text())
    if forgotten == "by a later migration":
        for number in range(KEPT + 2):
            begun(journal, tmp_path, Role.SOURCE, *LEFT, id=f"{number:08x}")
    else:
        journal.forget(went)
    assert not any(journal.by_id(ID, each) for each in Role)
    here.folder.mkdir(parents=True, exist_ok=True)
    clean(journal, tmp_path)
    assert (here.rootfs / "written").exists() is other


@pytest.mark.parametrize("other", [True, False], ids=["another disk", "its own"])
def test_so_does_that_of_what_lies_aside(journal: Journal, tmp_path: Path, other: bool,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """A move back has taken its place; nothing that moves to and fro after that makes it go."""
    monkeypatch.setattr(btrfs, "info", lambda path: SimpleNamespace(uuid=DISKS[other], parent_uuid=""))
    went = begun(journal, tmp_path, Role.SOURCE, *LEFT, rootfs_uuid=DISKS[False], destination_host="hostb")
    here = stands(tmp_path, message=standing.message(went))
    came = begun(journal, tmp_path, Role.DESTINATION, *ARRIVED, id=LATER, origin=ID)
    back = Layout(tmp_path, "web", LATER)
    put_away.keep_old(back)
    here.rootfs.rename(back.old / "rootfs")
    journal.forget(went)
    finish_here.end_here(came)
    clean(journal, tmp_path)
    assert (back.old / "rootfs" / "written").exists() is other


def test_a_configuration_stays_with_what_was_put_aside(journal: Journal, tmp_path: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the copy that has subvolumes inside; the finish that had put it aside was killed right after that."""
    begun(journal, tmp_path, Role.SOURCE, *LEFT)
    came = begun(journal, tmp_path, Role.DESTINATION, *ARRIVED, id=LATER, origin=ID)
    here = put_aside(tmp_path, came)
    monkeypatch.setattr(btrfs, "nested", lambda path: ["srv/made"])
    for _ in range(2):
        finish_here.end_here(came)
        assert len(here.set_aside()) == 1 and (here.old / "config").is_file()


@pytest.mark.parametrize("inside", ["a fence", "a link"])
def test_what_lies_in_a_root_file_system_itself_is_no_record(journal: Journal, tmp_path: Path, inside: str,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    """The container's root can have put anything there: it is not even read, and keeps nothing from being removed."""
    begun(journal, tmp_path, Role.SOURCE, *LEFT, rootfs_uuid="its")
    came = begun(journal, tmp_path, Role.DESTINATION, *ARRIVED, id=LATER, origin=ID)
    came.move(Event.FINISHED)
    kept = put_aside(tmp_path, came).work / f"{LATER}.ran.1"
    (kept.parent / f"{LATER}.old" / "rootfs").rename(kept)
    if inside == "a fence":
        container_config.fence(kept, "", ID, "no")
    else:
        (tmp_path / "the host's").touch()
        (kept / "config").symlink_to(tmp_path / "the host's")
    opened: list[Path] = []
    read = Path.read_text

    def reads(path: Path, *args: Any, **how: Any) -> str:
        opened.append(path)
        return read(path, *args, **how)

    monkeypatch.setattr(Path, "read_text", reads)
    assert str(kept) in clean(journal, tmp_path) and not kept.exists()
    assert kept / "config" not in opened
