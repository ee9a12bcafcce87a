# SPDX-License-Identifier: GPL-2.0-or-later
"""What a fence stands on that is still there when all is over: what may be removed then, and what nobody else has."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from migrator.config import container_config, include_copies
from migrator.copies import origins
from migrator.copies.origins import Whose
from migrator.errors.containers import ContainerExists
from migrator.record.journal import Journal, Migration
from migrator.record.migration_paths import Layout
from migrator.record.states import Event, Role, State
from stages import cleanup
from stages.steps import finish_here
from stages.steps.cleaner import Cleaner
from tests.stages.earlier_stays import ARRIVED, CONFIG, ID, LATER, LEFT, begun, clean, journal, put_aside, stands, state  # noqa: F401 -- fixtures

# --- cleanup NAME ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("state")
def test_what_has_left_goes(journal: Journal, tmp_path: Path) -> None:
    begun(journal, tmp_path, Role.SOURCE, *LEFT)
    here = stands(tmp_path)
    assert clean(journal, tmp_path, dry_run=True) == [str(here.rootfs), str(here.container)] and here.rootfs.is_dir()
    assert clean(journal, tmp_path) == [str(here.rootfs), str(here.container)] and not here.container.exists()


@pytest.mark.usefixtures("state")
def test_what_a_clone_held_up_goes_with_the_next_cleanup(journal: Journal, tmp_path: Path) -> None:
    """And a move to here finds nothing in its way meanwhile."""
    begun(journal, tmp_path, Role.SOURCE, *LEFT)
    here = stands(tmp_path)
    (here.container / include_copies.FOLDER / LATER).mkdir(parents=True)
    clone = tmp_path / "clone" / "config"
    clone.parent.mkdir()
    clone.write_text(f"lxc.include = {here.container / include_copies.FOLDER / LATER}/00-x.conf\n")
    assert clean(journal, tmp_path) == [str(here.rootfs)] and clean(journal, tmp_path) == []
    assert origins.whose(Layout(tmp_path, "web", LATER)) is Whose.COPY
    clone.unlink()
    assert clean(journal, tmp_path) == [str(here.container)] and not here.container.exists()


@pytest.mark.usefixtures("state")
def test_what_has_given_way_goes(journal: Journal, tmp_path: Path) -> None:
    begun(journal, tmp_path, Role.DESTINATION, *ARRIVED).move(Event.FINISHED, given_way=True)
    here = stands(tmp_path)
    clean(journal, tmp_path)
    assert not here.container.exists()


@pytest.mark.usefixtures("state")
def test_what_has_arrived_stays_whatever_its_fence_says(journal: Journal, tmp_path: Path) -> None:
    """It is the only one by now; a crash has kept its fence."""
    begun(journal, tmp_path, Role.DESTINATION, *ARRIVED, Event.FINISHED)
    here = stands(tmp_path)
    assert clean(journal, tmp_path, dry_run=True) == []
    assert container_config.fence_of((here.container / "config").read_text()) == ID, "a dry run changes nothing"
    assert clean(journal, tmp_path) == []
    assert (here.rootfs / "written").exists() and (here.container / "config").read_text() == CONFIG


@pytest.mark.usefixtures("state")
@pytest.mark.parametrize(("stands_there", "goes"), [
    ("its own", True), ("no disk", True), ("another disk", False), ("a disk elsewhere", False), ("a link", False)])
def test_what_a_power_cut_has_put_back_of_an_attempt_that_was_given_up(journal: Journal, tmp_path: Path,
                                                                       stands_there: str, goes: bool) -> None:
    """It had been removed, which the file system had not committed, other than the journal."""
    came = begun(journal, tmp_path, Role.DESTINATION, *ARRIVED[:-2])
    with came.step("rootfs") as made:
        made.rootfs_uuid = "other" if stands_there == "another disk" else "rootfs"
    came.move(Event.ABANDON)
    came.move(Event.ABANDONED)
    here = stands(tmp_path)
    if stands_there in ("no disk", "a disk elsewhere", "a link"):
        shutil.rmtree(here.rootfs)
    if stands_there == "a link":
        here.rootfs.symlink_to(tmp_path / "not mounted")
    if stands_there == "a disk elsewhere":
        container_config.fence(here.container, f"{CONFIG}lxc.rootfs.path = btrfs:/vols/web\n", ID, "no")
    assert bool(clean(journal, tmp_path, dry_run=True)) is goes and here.container.is_dir()
    clean(journal, tmp_path)
    assert here.container.is_dir() is not goes


@pytest.mark.usefixtures("state")
def test_a_fence_that_is_not_known_must_say_so_itself(journal: Journal, tmp_path: Path,
                                                      capfd: pytest.CaptureFixture[str]) -> None:
    """A journal can be lost."""
    here = stands(tmp_path, message="web is being moved here")
    assert clean(journal, tmp_path) == [] and (here.rootfs / "written").exists()
    assert str(here.container) in capfd.readouterr().err.replace("\n", "")
    here.make_folder()
    container_config.fence(here.container, CONFIG, ID, f"It runs there. {container_config.SUPERSEDED} web")
    clean(journal, tmp_path)
    assert not here.container.exists()


@pytest.mark.usefixtures("state")
def test_one_that_was_given_up_is_no_copy(journal: Journal, tmp_path: Path) -> None:
    begun(journal, tmp_path, Role.SOURCE, Event.SENT, Event.ROLL_BACK, Event.ROLLED_BACK)
    here = stands(tmp_path)
    clean(journal, tmp_path)
    assert (here.rootfs / "written").exists()


@pytest.mark.parametrize(("said", "lives"), [("RUNNING", False), ("FROZEN", False), ("STOPPED", True)])
def test_what_is_at_work_stays(journal: Journal, tmp_path: Path, state: SimpleNamespace, said: str,
                               lives: bool) -> None:
    """Also what LXC does not know under this spelling of its path, or whose monitor is gone."""
    begun(journal, tmp_path, Role.SOURCE, *LEFT)
    here = stands(tmp_path)
    state.state, state.lives = said, lives
    clean(journal, tmp_path)
    assert (here.rootfs / "written").exists()
    with pytest.raises(ContainerExists):
        origins.refuse_foreign(journal, Layout(tmp_path, "web", LATER), ID, renamed=False)
    state.state, state.lives = "STOPPED", False
    origins.refuse_foreign(journal, Layout(tmp_path, "web", LATER), ID, renamed=False)


@pytest.mark.usefixtures("state")
def test_what_is_not_migrators_is_told(journal: Journal, tmp_path: Path) -> None:
    begun(journal, tmp_path, Role.SOURCE, *LEFT)
    here = stands(tmp_path)
    (here.container / "data").mkdir()
    (here.container / "data" / "live").touch()
    for dry_run in (True, False):
        cleaner = Cleaner(dry_run=dry_run)
        cleanup.clean_container(cleaner, journal, "web", tmp_path, keep_copy=False)
        assert cleaner.removed == [str(here.rootfs)] and cleaner.left == [str(here.container / "data")]
    assert (here.container / "data" / "live").exists()
    assert origins.whose(Layout(tmp_path, "web", LATER)) is Whose.COPY, "so the container may come back"


# --- finish, on the destination -------------------------------------------------------------------------------


@pytest.mark.usefixtures("state")
def test_a_fence_that_cannot_be_taken_away_is_no_end(journal: Journal, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    came = begun(journal, tmp_path, Role.DESTINATION, *ARRIVED)
    here = stands(tmp_path)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr(container_config, "write_file", full)
        with pytest.raises(OSError, match="No space"):
            finish_here.end_here(came)
    assert came.state is State.RESTORED
    finish_here.end_here(came)
    assert str(came.state) == "finished" and (here.container / "config").read_text() == CONFIG


@pytest.mark.usefixtures("state")
def test_a_late_finish_leaves_a_later_stay_alone(journal: Journal, tmp_path: Path) -> None:
    came = begun(journal, tmp_path, Role.DESTINATION, *ARRIVED)
    came.move(Event.FINISHED, forced=True)
    begun(journal, tmp_path, Role.DESTINATION, *ARRIVED, Event.FINISHED, id=LATER)
    begun(journal, tmp_path, Role.SOURCE, Event.SENT, id="00000003")
    here = Layout(tmp_path, "web", "00000003")
    copies = here.container / include_copies.FOLDER / LATER
    for path in (copies, here.snapshot(1), here.snapshot(2)):
        path.mkdir(parents=True)
    finish_here.end_here(came)
    assert copies.is_dir() and here.snapshot(1).is_dir() and here.snapshot(2).is_dir()
    assert not came.may_be_asked_for, "that the source has ended its copy is recorded all the same"


@pytest.mark.usefixtures("state")
def test_a_finish_that_broke_off_is_completed(journal: Journal, tmp_path: Path) -> None:
    came = begun(journal, tmp_path, Role.DESTINATION, *ARRIVED, Event.FINISHED)
    here = Layout(tmp_path, "web", ID)
    for path in (here.snapshot(1), here.snapshot(2), here.spool):
        path.mkdir(parents=True)
    finish_here.end_here(came)
    assert not here.spool.exists() and not here.snapshot(1).exists() and here.snapshot(2).is_dir()


@pytest.mark.usefixtures("state")
def test_what_has_given_way_keeps_its_fence(journal: Journal, tmp_path: Path) -> None:
    came = begun(journal, tmp_path, Role.DESTINATION, *ARRIVED)
    came.move(Event.FINISHED, given_way=True)
    stands(tmp_path)
    finish_here.end_here(came)
    assert origins.whose(Layout(tmp_path, "web", ID)) is Whose.OURS


# --- what stood in the place of what has arrived --------------------------------------------------------------


@pytest.mark.usefixtures("state")
@pytest.mark.parametrize("why", ["it has given way", "of another origin", "nobody knows it", "not known where from"])
def test_what_may_be_the_only_one_stays_until_it_is_asked_for(journal: Journal, tmp_path: Path, why: str,
                                                              capfd: pytest.CaptureFixture[str]) -> None:
    if why == "it has given way":
        begun(journal, tmp_path, Role.DESTINATION, *ARRIVED).move(Event.FINISHED, given_way=True)
    elif why != "nobody knows it":
        begun(journal, tmp_path, Role.SOURCE, *LEFT)
    origin = {"it has given way": ID, "nobody knows it": ID, "of another origin": "ffffffff"}.get(why, "")
    came = begun(journal, tmp_path, Role.DESTINATION, *ARRIVED, id=LATER, origin=origin)
    here = put_aside(tmp_path, came)
    for _ in range(2):  # safe to repeat
        finish_here.end_here(came)
        (kept,) = here.set_aside()
        assert (kept / "written").exists() and (here.old / "config").is_file()
    said = f"it is kept in {kept}, its configuration in {here.old}, until: migrator cleanup web"
    assert said in " ".join(capfd.readouterr().err.split())
    cleaner = Cleaner(dry_run=False)
    cleanup._clean_folder(cleaner, journal, here.work, set())
    assert (kept / "written").exists() and set(cleaner.kept) == {str(kept), str(here.old)}
    clean(journal, tmp_path)
    assert not kept.exists() and not here.old.exists()


@pytest.mark.usefixtures("state")
def test_the_copy_of_what_comes_back_goes(journal: Journal, tmp_path: Path) -> None:
    begun(journal, tmp_path, Role.SOURCE, *LEFT)
    came = begun(journal, tmp_path, Role.DESTINATION, *ARRIVED, id=LATER, origin=ID)
    here = put_aside(tmp_path, came)
    finish_here.end_here(came)
    assert here.set_aside() == [] and not here.old.exists()


@pytest.mark.usefixtures("state")
@pytest.mark.parametrize("ours", [True, False])
def test_what_an_older_version_has_put_aside_is_kept_or_goes_by_the_same_rule(journal: Journal, tmp_path: Path,
                                                                              ours: bool) -> None:
    begun(journal, tmp_path, Role.SOURCE, *LEFT)
    came = begun(journal, tmp_path, Role.DESTINATION, *ARRIVED, id=LATER, origin=ID if ours else "ffffffff")
    here = put_aside(tmp_path, came)
    here.old.rename(here.former_old)
    here.spool.rename(here.former_spool)
    here.work.rmdir()  # which older versions had not
    finish_here.end_here(came)
    assert [(kept / "written").exists() for kept in here.set_aside()] == ([] if ours else [True])
    assert here.former_old.exists() is not ours
    clean(journal, tmp_path)
    assert here.set_aside() == [] and not here.former_old.exists(), "nor does it stay for ever"


@pytest.mark.usefixtures("state")
def test_what_has_run_here_before_keeps_no_copy_of_an_earlier_stay(journal: Journal, tmp_path: Path) -> None:
    """A restore that failed had put it aside."""
    begun(journal, tmp_path, Role.SOURCE, *LEFT)
    came = begun(journal, tmp_path, Role.DESTINATION, *ARRIVED, id=LATER, origin=ID)
    here = put_aside(tmp_path, came)
    ran = here.aside()
    ran.mkdir()
    finish_here.end_here(came)
    assert here.set_aside() == [ran] and not here.old.exists()


@pytest.mark.usefixtures("state")
def test_what_has_no_configuration_is_nobodys_copy(journal: Journal, tmp_path: Path,
                                                   capfd: pytest.CaptureFixture[str]) -> None:
    """As what somebody has put in the place of what had arrived."""
    begun(journal, tmp_path, Role.SOURCE, *LEFT)
    came = begun(journal, tmp_path, Role.DESTINATION, *ARRIVED, id=LATER, origin=ID)
    here = put_aside(tmp_path, came)
    shutil.rmtree(here.old)
    (here.old / "rootfs").mkdir(parents=True)
    cleaner = Cleaner(dry_run=False)
    cleanup._clean_folder(cleaner, journal, here.work, set())
    assert cleaner.kept == [str(here.old)]
    here.spool.mkdir()  # of which that cleanup did not know that it is needed
    finish_here.end_here(came)
    (kept,) = here.set_aside()
    assert f"it is kept in {kept} until: migrator cleanup web" in " ".join(capfd.readouterr().err.split())


def elsewhere(pool: Path, came: Migration) -> tuple[Layout, str]:
    """Only the configuration was put aside, as the root file system lay in another place, and lies there."""
    here = put_aside(pool, came)
    shutil.rmtree(here.old / "rootfs")
    disk = pool / "vols" / "web"
    disk.mkdir(parents=True)
    container_config.fence(here.old, f"{CONFIG}lxc.rootfs.path = btrfs:{disk}\n", ID, "no")
    return here, str(disk)


@pytest.mark.usefixtures("state")
@pytest.mark.parametrize("ours", [True, False])
def test_whose_disk_lies_in_another_place(journal: Journal, tmp_path: Path, capfd: pytest.CaptureFixture[str],
                                          ours: bool) -> None:
    """Nothing but that configuration names it: that of another container is kept, and of both is said where it is."""
    begun(journal, tmp_path, Role.SOURCE, *LEFT)
    came = begun(journal, tmp_path, Role.DESTINATION, *ARRIVED, id=LATER, origin=ID if ours else "ffffffff")
    here, disk = elsewhere(tmp_path, came)
    for _ in range(1 if ours else 2):  # safe to repeat
        finish_here.end_here(came)
        assert f"btrfs:{disk}" in capfd.readouterr().err.replace("\n", "")
        assert (here.old / "config").is_file() is not ours and Path(disk).is_dir()
    clean(journal, tmp_path)
    assert not here.old.exists() and Path(disk).is_dir()


@pytest.mark.usefixtures("state")
@pytest.mark.parametrize("named", ["its place", "by a link", "none"])
def test_the_configuration_of_another_one_without_a_disk(journal: Journal, tmp_path: Path, named: str,
                                                         capfd: pytest.CaptureFixture[str]) -> None:
    """It is kept as well: perhaps there is no second one."""
    came = begun(journal, tmp_path, Role.DESTINATION, *ARRIVED, id=LATER, origin="ffffffff")
    here, _ = elsewhere(tmp_path, came)
    (tmp_path / "link").symlink_to(tmp_path)
    lines = {"its place": f"lxc.rootfs.path = btrfs:{here.rootfs}\n", "none": "",
             "by a link": f"lxc.rootfs.path = dir:{tmp_path}/link/web/rootfs\n"}
    container_config.fence(here.old, CONFIG + lines[named], ID, "no")
    finish_here.end_here(came)
    assert (here.old / "config").is_file() and "it is in" not in capfd.readouterr().err
