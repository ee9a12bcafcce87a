# SPDX-License-Identifier: GPL-2.0-or-later
"""A restore that failed is tried again: what it needs of the images is still as it has arrived."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from migrator.criu import cgroup_image, criu_dump, restore
from migrator.errors.data import SegmentDamaged
from migrator.errors.memory import RestoreFailed
from migrator.errors.this_host import CommandFailed
from migrator.host import btrfs, cgroup_limits, lxc
from migrator.record.journal import Journal
from migrator.record.migration_paths import Layout
from migrator.record.states import Event, Role
from migrator.transfer import spool
from stages.steps import restore_here
from tests.migrator.cgroup_images import image, prop
from tests.migrator.transfer.spools import store

ID = "0badc0de"
CONTROLLERS = prop("cgroup.subtree_control", "memory pids\n")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    found = Layout(tmp_path, "web", ID).image_folders()[1]
    found.mkdir(parents=True)
    store(found / cgroup_image.IMAGE, image(CONTROLLERS))
    store(found / "core-1.img", b"core")
    store(found / cgroup_limits.CONTROLLERS, b"memory pids\t.\n")
    return found


@pytest.fixture
def stage(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[restore_here.Restore]:
    layout = Layout(tmp_path, "web", ID)
    layout.spool.mkdir(parents=True)
    layout.container.mkdir()
    (layout.container / "config").write_text(f"lxc.rootfs.path = btrfs:{layout.rootfs}\nlxc.uts.name = web\n")
    monkeypatch.setattr(lxc, "Container", lambda name, lxcpath: SimpleNamespace(
        name=name, folder=lxcpath / name, config_file=lxcpath / name / "config", state="RUNNING", init_pid=1,
        cgroup=images))
    monkeypatch.setattr(restore_here, "receive", lambda *_: SimpleNamespace(path=tmp_path, uuid="last"))
    monkeypatch.setattr(restore_here, "give_back_rootfs", lambda _: None)
    monkeypatch.setattr(restore_here, "put_rootfs_aside", lambda _: None)
    monkeypatch.setattr(btrfs, "snapshot", lambda *_, **__: SimpleNamespace(uuid="made"))
    monkeypatch.setattr(lxc, "thaw", lambda *_: None)
    monkeypatch.setattr(lxc, "processes", lambda _: [1])
    with Journal(tmp_path / "journal.db") as journal:
        migration = journal.create(
            id=ID, role=Role.DESTINATION, name="web", lxcpath=tmp_path, peer="hosta", event=Event.RECEIVE, rounds=[],
            memory=True, increment_uuid="x", image_files=[path.name for path in criu_dump.image_files(images)])
        yield restore_here.Restore(migration, 3600.0, leave=lambda: math.inf)


def restored(stage: restore_here.Restore, images: Path) -> None:
    prepared = stage._apply(images)
    assert prepared
    stage._restore(images, prepared)


@pytest.mark.parametrize("failure", [CommandFailed(command="lxc-checkpoint", exit_status=1, output="no bridge"),
                                     KeyboardInterrupt()], ids=["failed", "interrupted"])
def test_what_has_arrived_can_be_restored_again(stage: restore_here.Restore, images: Path, failure: BaseException,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    """CRIU is given another image of the cgroups than the one that the source's digest is of."""
    given: list[bytes] = []

    def fails(*_: object, **__: object) -> None:
        given.append((images / cgroup_image.IMAGE).read_bytes())
        raise failure

    monkeypatch.setattr(restore, "run", fails)
    for _ in range(2):
        with pytest.raises((RestoreFailed, KeyboardInterrupt)):
            restored(stage, images)
    monkeypatch.setattr(restore, "run", lambda *_, **__: given.append((images / cgroup_image.IMAGE).read_bytes()))
    restored(stage, images)
    assert given == [image()] * 3


def test_damage_is_still_found(stage: restore_here.Restore, images: Path) -> None:
    """Also of the image that was put aside."""
    cgroup_image.leave_controllers(images)
    (images / cgroup_image.ARRIVED).write_bytes(image(CONTROLLERS)[:-1] + b"x")
    with pytest.raises(SegmentDamaged, match=cgroup_image.IMAGE):
        stage._apply(images)


def test_an_image_that_makes_no_sense(stage: restore_here.Restore, images: Path) -> None:
    store(images / cgroup_image.IMAGE, image(CONTROLLERS)[:11])
    with pytest.raises(RestoreFailed, match="damaged"):
        restored(stage, images)
    spool.verify(images / cgroup_image.IMAGE)
