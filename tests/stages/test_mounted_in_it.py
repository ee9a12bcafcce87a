# SPDX-License-Identifier: GPL-2.0-or-later
"""Something is mounted in a root file system that is to go: it is somebody's, and would be detached."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

from pathlib import Path

import pytest

from migrator.base import removal
from migrator.config import container_config
from migrator.copies import origins
from migrator.errors.data import SnapshotFailed
from migrator.record.journal import Journal
from migrator.record.migration_paths import Layout
from stages import cleanup
from stages.steps import earlier_stay, moved_copy, put_away
from stages.steps.cleaner import Cleaner
from tests.stages.journals import journal  # noqa: F401 -- a fixture
from tests.stages.nested_subvolumes import Util, moved, subvolume, util  # noqa: F401 -- fixtures


@pytest.fixture
def mounted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    made: list[Path] = []
    monkeypatch.setattr(removal, "mounts_in", lambda path: [
        str(each) for each in made if each.is_relative_to(path)], raising=False)
    return made


@pytest.mark.parametrize("way", ["cleanup NAME", "--undefine-source"])
def test_cleanup_leaves_the_copy(journal: Journal, moved: Layout, util: Util, mounted: list[Path], way: str,
                                 capfd: pytest.CaptureFixture[str]) -> None:
    mounted.append(moved.rootfs / "mnt")
    for dry_run in (True, False):
        cleaner = Cleaner(dry_run=dry_run)
        if way == "cleanup NAME":
            cleanup.clean_container(cleaner, journal, "web", moved.lxcpath, keep_copy=False)
        else:
            moved_copy.clean_moved(cleaner, journal.all("web")[0])
        assert cleaner.left == [str(moved.rootfs / "mnt")] and str(moved.rootfs) not in cleaner.removed
    assert util.deleted == [] and moved.rootfs.is_dir() and (moved.container / "config").is_file()
    assert f"something is mounted in it: {moved.rootfs / 'mnt'}" in " ".join(capfd.readouterr().err.split())


@pytest.mark.parametrize("point", ["", "mnt"])
@pytest.mark.parametrize("told", [True, False])
def test_the_end_of_a_move_back_leaves_it_where_it_is(journal: Journal, moved: Layout, util: Util,
                                                      mounted: list[Path], point: str, told: bool) -> None:
    """Not even put aside: what is a mount point itself cannot be renamed. Then it goes with its container's name."""
    came = journal.all("web")[0]
    here = Layout(moved.lxcpath, "web", "00000002")
    rootfs = subvolume(here.old / "rootfs")
    if told:
        (here.old / "config").write_text((moved.container / "config").read_text())
    mounted.append(rootfs / point)
    earlier_stay.drop(came, here, here.old)
    assert util.deleted == [] and rootfs.is_dir() and (here.old / "config").is_file() is told
    cleaner = Cleaner(dry_run=False)
    cleanup._clean_folder(cleaner, journal, here.work, set(), copies=True)
    assert cleaner.left == [str(rootfs / point)] and rootfs.is_dir()
    mounted.clear()
    cleanup._clean_folder(cleaner, journal, here.work, set(), copies=True)
    assert util.deleted == [rootfs] and not here.old.exists()


def test_what_a_rollback_removes_stays_in_its_place(moved: Layout, mounted: list[Path], util: Util,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole, with its fence: the next one removes it."""
    monkeypatch.setattr(Layout, "is_own_rootfs", lambda _: True)
    here = Layout(moved.lxcpath, "web", container_config.fence_of((moved.container / "config").read_text()))
    assert origins.whose(here) is origins.Whose.OURS
    mounted.append(here.rootfs / "mnt")
    with pytest.raises(SnapshotFailed):
        put_away._remove(here)
    assert here.rootfs.is_dir() and (here.container / "config").is_file() and not here.beside.exists()
    mounted.clear()
    put_away._remove(here)
    assert util.deleted == [here.beside / "rootfs"] and not here.container.exists()
