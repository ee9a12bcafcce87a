# SPDX-License-Identifier: GPL-2.0-or-later
"""An origin goes with what has arrived, and not with its name: an earlier stay's copy gives way to it."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

from pathlib import Path

import pytest

from migrator import btrfs, container_config, identity
from migrator.journal import Journal, Migration
from migrator.states import Event, Role
from stages import finish
from tests.stages.test_put_aside import (
    EARLIER,
    Disk,
    attempt,
    disk,  # noqa: F401
    found,
    layout_of,
    owned,  # noqa: F401
)


def origin(migration: Migration) -> str:
    return identity.origin(migration.journal, "web", migration.lxcpath)


def made_anew(migration: Migration, disk: Disk) -> None:
    """lxc-destroy and lxc-create: another container under the same name."""
    rootfs = layout_of(migration).rootfs
    btrfs.delete(rootfs)
    disk.make(rootfs, "another")


@pytest.mark.parametrize("finished", [False, True])
def test_it_goes_with_what_has_arrived(owned: Migration, disk: Disk, finished: bool) -> None:
    owned.note("origin", origin=EARLIER)
    assert origin(owned) == ""
    attempt(owned)
    if finished:
        finish.end_here(owned)
    assert origin(owned) == EARLIER
    made_anew(owned, disk)
    assert origin(owned) == ""
    btrfs.delete(layout_of(owned).rootfs)
    assert origin(owned) == ""


def test_it_outlives_the_snapshots(owned: Migration, disk: Disk) -> None:
    """`cleanup` removes them, and so does the next migration."""
    owned.note("origin", origin=EARLIER)
    attempt(owned)
    finish.end_here(owned)
    finish.end_here(owned)
    btrfs.delete(layout_of(owned).snapshot(1))
    assert origin(owned) == EARLIER
    finish.end_here(owned)  # asked for once more, when nothing tells it any more
    assert origin(owned) == EARLIER
    made_anew(owned, disk)
    assert origin(owned) == ""


def test_another_container_of_that_name_takes_no_copys_place(owned: Migration, disk: Disk, tmp_path: Path) -> None:
    """It was made on the second host, where the first one's had been destroyed, and comes to the first host."""
    owned.note("origin", origin=EARLIER)
    attempt(owned)
    finish.end_here(owned)
    made_anew(owned, disk)
    with Journal(tmp_path / "first.db") as journal:
        went = journal.create(id=EARLIER, role=Role.SOURCE, name="web", lxcpath=tmp_path / "first", peer="hostb",
                              event=Event.SEND, rounds=[])
        for event in (Event.SENT, Event.FREEZE, Event.OFFER, Event.TAKEN, Event.FINISH, Event.FINISHED):
            went.move(event)
        comes = journal.create(id="00000003", role=Role.DESTINATION, name="web", lxcpath=tmp_path / "first",
                               peer="hostb", event=Event.RECEIVE, rounds=[], origin=origin(owned) or "00000003")
        for event in (Event.RECEIVED, Event.IMPORT, Event.IMPORTED, Event.RECEIVE_DUMP, Event.DUMP_RECEIVED, Event.OWN,
                      Event.RESTORE, Event.RESTORED):
            comes.move(event)
        layout = layout_of(comes)
        layout.make_folder()
        layout.spool.mkdir()
        layout.container.mkdir()
        (layout.container / "config").write_text("lxc.uts.name = web\n")
        disk.make(layout.old / "rootfs", "only-copy")
        container_config.fence(layout.old, "lxc.uts.name = web\n", EARLIER, "it has left")
        finish.end_here(comes)
        assert found(comes, "of only-copy") == [".migrator/web+/00000003.ran.1"]
