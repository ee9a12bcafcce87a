# SPDX-License-Identifier: GPL-2.0-or-later
"""The copy of an earlier stay whose root file system lies elsewhere: what has that place here is not the copy's."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from migrator.config import container_config
from migrator.copies import origins
from migrator.errors.containers import ContainerExists
from migrator.host import btrfs, lxc
from migrator.host.btrfs import Subvolume
from migrator.record.journal import Migration
from migrator.record.migration_paths import Layout
from stages.steps import earlier_stay, put_away
from tests.stages.defining import ID, arriving, define

__all__ = ["arriving"]
EARLIER = "00000001"


@pytest.fixture(autouse=True)
def disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A subvolume is a folder with the file `uuid`; nothing lives in any."""
    monkeypatch.setattr(btrfs, "is_subvolume", lambda path: (path / "uuid").is_file())
    monkeypatch.setattr(btrfs, "info", lambda path: Subvolume(
        path, (path / "uuid").read_text(), "", read_only=False, generation=1))
    monkeypatch.setattr(btrfs, "nested", lambda _: [])
    monkeypatch.setattr(btrfs, "delete", lambda path: shutil.rmtree(path, ignore_errors=True))
    monkeypatch.setattr(lxc, "payload_processes", lambda _: [])
    monkeypatch.setattr(origins, "is_superseded", lambda *_: True)


def subvolume(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "uuid").write_text(path.name)
    return path


def copy(migration: Migration, *, elsewhere: bool) -> Layout:
    """It has a fence, and names its root file system."""
    here = Layout(migration.lxcpath, "web", ID)
    rootfs = subvolume(here.lxcpath / "vols" / "web") if elsewhere else here.rootfs
    here.container.mkdir()
    container_config.fence(here.container, f"lxc.uts.name = web\nlxc.rootfs.path = btrfs:{rootfs}\n", EARLIER, "moved")
    return here


@pytest.mark.parametrize("elsewhere", [True, False])
def test_it_is_refused_before_anything_is_sent(arriving: Migration, elsewhere: bool) -> None:
    here = copy(arriving, elsewhere=elsewhere)
    origins.refuse_foreign(arriving.journal, here, "", renamed=False)
    subvolume(here.rootfs)
    if not elsewhere:
        origins.refuse_foreign(arriving.journal, here, "", renamed=False)
        return
    with pytest.raises(ContainerExists):
        origins.refuse_foreign(arriving.journal, here, "", renamed=False)
    assert btrfs.is_subvolume(here.rootfs)


@pytest.mark.parametrize("what", ["another's", "the copy's, at work", "the copy's"])
def test_what_has_come_into_its_place_meanwhile(arriving: Migration, monkeypatch: pytest.MonkeyPatch,
                                                what: str) -> None:
    """Before the freeze the next round finds it, and else the restore: nothing of it is taken away for a while."""
    here = copy(arriving, elsewhere=what == "another's")
    define(arriving, "lxc.uts.name = web\n", {})
    rootfs = subvolume(here.rootfs)
    monkeypatch.setattr(lxc, "lives_in", lambda name, of: (name, of) == ("web", rootfs) and "at work" in what)
    if what == "the copy's":
        define(arriving, "lxc.uts.name = web\n", {})
        put_away.put_rootfs_aside(here)
        assert btrfs.is_subvolume(here.old / "rootfs") and not here.rootfs.exists()
        return
    with pytest.raises(ContainerExists):
        define(arriving, "lxc.uts.name = web\n", {})
    with pytest.raises(ContainerExists):
        put_away.put_rootfs_aside(here)
    assert btrfs.is_subvolume(rootfs) and not (here.old / "rootfs").exists()
    put_away.give_back_old(here)
    assert btrfs.is_subvolume(rootfs)
    assert container_config.fence_of((here.container / "config").read_text()) == EARLIER


def test_what_an_older_version_has_put_aside_is_not_deleted(arriving: Migration,
                                                            capfd: pytest.CaptureFixture[str]) -> None:
    here = copy(arriving, elsewhere=True)
    define(arriving, "lxc.uts.name = web\n", {})
    subvolume(here.old / "rootfs")
    for _ in range(2):  # safe to repeat
        earlier_stay.drop(arriving, here, here.old)
        (kept,) = here.set_aside()
        assert btrfs.is_subvolume(kept) and not here.old.exists()
    assert btrfs.is_subvolume(here.lxcpath / "vols" / "web")
    told = capfd.readouterr().err.replace("\n", "")
    assert str(kept) in told and str(here.lxcpath / "vols" / "web") in told
