# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether the disk of an LXC path is there: what is told of one that is not, and that none is kept busy for it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from migrator.errors.containers import DiskAway
from migrator.record import lxc_disk, next_commands
from migrator.record.migration_paths import Layout


@pytest.fixture
def here(tmp_path: Path) -> Layout:
    """A migration whose disk is there."""
    made = Layout(tmp_path / "pool", "web", "0badc0de")
    made.spool.mkdir(parents=True)
    return made


def umount(here: Layout) -> None:
    here.lxcpath.rename(here.lxcpath.with_name("disk"))


def held(here: Layout) -> None:
    with lxc_disk.held(here):
        pass


def test_who_reads_it_is_told_which_disk_that_is(here: Layout) -> None:
    umount(here)
    here.lxcpath.mkdir()
    with pytest.raises(DiskAway) as raised:
        lxc_disk.require(here)
    away = raised.value
    assert f"What migrator keeps of web below {here.lxcpath} on {next_commands.this_host()}" in str(away)
    assert f"({here.spool} is missing)" in str(away)
    assert f"Mount the disk on {next_commands.this_host()} (findmnt -T {here.lxcpath} shows" in away.hint
    assert "whatever web has done there" in away.hint and f"mkdir -p {here.spool}" in away.hint
    assert away.to_json()["fields"]["spool"] == str(here.spool), "so does a program"


def test_its_mount_point_may_go_with_it(here: Layout) -> None:
    """As where it is one of autofs, or lies on a disk that goes too."""
    with pytest.raises(DiskAway, match="No such file or directory"), lxc_disk.held(here):
        umount(here)
    with pytest.raises(DiskAway, match="No such file or directory"):
        lxc_disk.require(here)


def test_what_stands_there_was_not_removed(here: Layout) -> None:
    """That is seen without the spool, which goes when the migration ends."""
    here.container.mkdir()
    (here.container / "config").touch()
    here.spool.rmdir()
    assert not lxc_disk.is_removed(here)
    (here.container / "config").unlink()
    with pytest.raises(DiskAway):
        lxc_disk.is_removed(here)


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("look", [lxc_disk.require, held, lxc_disk.is_here, lxc_disk.is_removed])
def test_it_can_be_unmounted_after_each_look(here: Layout, look: Callable[[Layout], object], there: bool) -> None:
    """A folder that stayed open would keep it busy."""
    if not there:
        here.spool.rmdir()
    with contextlib.suppress(DiskAway):
        look(here)
    assert str(here.lxcpath) not in {os.path.realpath(each) for each in Path("/proc/self/fd").iterdir()}


def test_when_a_spool_has_gone_with_the_end(here: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the disk that it was on; where that is another one, or cannot be asked, or is not on record, nothing tells."""
    disk = lxc_disk.of(here.lxcpath)
    assert not lxc_disk.has_ended(here, disk)
    here.spool.rmdir()
    assert lxc_disk.has_ended(here, disk)
    assert not lxc_disk.has_ended(here, None) and not lxc_disk.has_ended(here, "another")
    umount(here)
    assert not lxc_disk.has_ended(here, disk)
