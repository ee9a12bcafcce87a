# SPDX-License-Identifier: GPL-2.0-or-later
"""The disk of the destination's LXC path is not there when data are to come: no spool is made in its place.

By that spool it is told whether the disk is there. One that was made below a mount point would say so whenever it is
not; and what has run would count as destroyed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from migrator.errors.containers import DiskAway
from migrator.record import lxc_disk
from migrator.record.journal import Migration
from migrator.record.migration_paths import Layout
from migrator.record.states import Event, Role, State
from migrator.transfer.messages import DiskTransfer, DumpBegin
from migrator.transfer.wire_codec import decoded
from stages import create_dump
from stages.steps import take, take_disk
from tests.stages.answering import ID, Destination, pool, there  # noqa: F401 -- fixtures

# ruff: noqa: F811 -- fixtures


class Disk:
    """What is mounted on the LXC path, or not; each of the two folders lies on a file system of its own."""

    def __init__(self, pool: Path) -> None:
        self.pool, self.other = pool, pool.with_name("other")
        self.other.mkdir()
        (pool / "fsid").write_text("disk")
        (self.other / "fsid").write_text("root")

    def change(self) -> None:
        """Mount it, or unmount it."""
        self.pool.rename(self.pool.with_name("between"))
        self.other.rename(self.pool)
        self.pool.with_name("between").rename(self.other)

    def spools(self) -> list[str]:
        """The file systems on which a spool lies."""
        return sorted((folder / "fsid").read_text() for folder in (self.pool, self.other)
                      if Layout(folder, "web", ID).spool.exists())


@pytest.fixture
def disk(pool: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    monkeypatch.setattr(lxc_disk, "of", lambda lxcpath: (lxcpath / "fsid").read_text())
    return Disk(pool)


def known(there: Destination) -> Migration:
    found = there.journal.by_id(ID, Role.DESTINATION)
    assert found
    return found


def has_arrived(there: Destination) -> None:
    known(there).move(Event.RECEIVED, rounds=[{"uuid": "1"}])


def another_is_under_way(there: Destination) -> None:
    has_arrived(there)
    known(there).move(Event.RECEIVE)


def only_rollback(away: DiskAway) -> None:
    """Nothing has run, and a spool that is made by hand would vouch for a disk on which it has not begun."""
    assert "migrator rollback web" in away.hint and "mkdir" not in away.hint


AS_FAR_AS: dict[str, Callable[[Destination], None]] = {
    "it has begun": lambda _: None,
    "a round has arrived": has_arrived,
    "another one is under way": another_is_under_way,
}


@pytest.mark.parametrize("how_far", AS_FAR_AS)
@pytest.mark.parametrize("op", ["begin", "data"])
def test_nothing_is_made_where_the_disk_is_not(there: Destination, disk: Disk, how_far: str, op: str) -> None:
    """As after a reboot with a late mount; the source comes back over a new connection, without a preflight."""
    there.ask("begin")
    AS_FAR_AS[how_far](there)
    before = known(there).state
    disk.change()
    there.layout.work.mkdir(parents=True)  # what an older version has left there
    with pytest.raises(DiskAway) as away:
        if op == "begin":
            there.ask("begin")
        else:
            take_disk.receive_disk(there.service, DiskTransfer(id=ID, round=1))
    only_rollback(away.value)
    assert disk.spools() == ["disk"] and known(there).state is before
    disk.change()
    there.ask("begin")
    assert take_disk.receive_disk(there.service, DiskTransfer(id=ID, round=1)).folder == there.layout.spool


def test_nor_for_a_dump(there: Destination, disk: Disk) -> None:
    there.ask("begin")
    has_arrived(there)
    there.take(Event.IMPORT, Event.IMPORTED)
    known(there).move(Event.RECEIVE_DUMP, attempt=1)
    disk.change()
    for message, receive in create_dump.RECEIVERS.items():
        with pytest.raises(DiskAway) as away:
            receive(there.service, decoded(message, {
                "kind": message.__struct_config__.tag, "id": ID, "attempt": 1, "uuid": "1", "bytes": 1}))
        only_rollback(away.value)
    with pytest.raises(DiskAway) as away:
        take.dump_begin(there.service, DumpBegin(id=ID, attempt=2))
    only_rollback(away.value)
    assert disk.spools() == ["disk"]


@pytest.mark.parametrize("away_first", [True, False])
def test_who_began_it_was_killed_before_there_was_a_spool(there: Destination, disk: Disk, away_first: bool,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """Then there is none to be missed; but where it belongs is on record."""
    if away_first:
        disk.change()
    with monkeypatch.context() as killed:
        killed.setattr(Layout, "make_folder", lambda _: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            there.ask("begin")
    disk.change()
    with pytest.raises(DiskAway, match="begun on another file system"):
        there.ask("begin")
    assert disk.spools() == []
    disk.change()
    there.ask("begin")
    assert disk.spools() == ["root" if away_first else "disk"]


def test_one_that_has_begun_below_the_mount_point_ends_there(there: Destination, disk: Disk) -> None:
    """Nobody can know at its begin that another disk belongs there. That one gets no second spool, and nothing runs."""
    disk.change()
    there.ask("begin")
    disk.change()
    for _ in range(2):
        with pytest.raises(DiskAway) as away:
            there.ask("begin")
        only_rollback(away.value)
    assert disk.spools() == ["root"]
    there.ask("abandon")
    assert there.state is State.ABANDONED


@pytest.mark.parametrize("arrived", [True, False])
def test_what_an_older_version_has_begun(there: Destination, disk: Disk, arrived: bool) -> None:
    """It has recorded no file system: from the first round on the spool alone must be there."""
    there.ask("begin")
    if arrived:
        has_arrived(there)
    known(there).note("older", disk=None)
    there.ask("begin")
    disk.change()
    if arrived:
        with pytest.raises(DiskAway):
            there.ask("begin")
    assert disk.spools() == ["disk"]


def test_a_file_system_is_told_from_another(tmp_path: Path) -> None:
    here = Layout(tmp_path, "web", ID)
    (tmp_path / "inside").mkdir()
    assert lxc_disk.of(tmp_path) == lxc_disk.of(tmp_path / "inside") != lxc_disk.of(Path("/proc"))
    for disk in (None, lxc_disk.of(tmp_path)):
        lxc_disk.require_same(here, disk)
    for layout, disk in ((here, lxc_disk.of(Path("/proc"))), (Layout(tmp_path / "gone", "web", ID), None)):
        with pytest.raises(DiskAway):
            lxc_disk.require_same(layout, disk)
