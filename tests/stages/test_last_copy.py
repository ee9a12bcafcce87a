# SPDX-License-Identifier: GPL-2.0-or-later
"""A dump that came to no end, of a container that was removed meanwhile: its newest snapshot may be the last copy."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from migrator import lxc
from migrator.errors import DiskAway, DowntimeExceeded, OutOfOrder
from migrator.journal import Journal
from migrator.layout import Layout
from migrator.states import State
from stages import ask_state, check, create_dump, offer, prepare_data, rollback
from tests.stages.snapshots import layout_of
from tests.stages.test_gone_here import ANOTHER, DUMPED, ID, ITS_OWN, WAYS, begun, host, put, started
from tests.stages.test_heal import journal
from tests.stages.test_started_again import TOO_LATE, There

__all__ = ["host", "journal", "started"]


@WAYS
@pytest.mark.parametrize("name_taken", [False, True])
def test_what_a_killed_dump_has_left_stays_for_rollback(journal: Journal, started: list[str], way: dict[str, Any],
                                                        name_taken: bool,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last snapshot, which is the newest, as where nobody has healed it before; but not its images, in memory."""
    dropped: list[str] = []
    monkeypatch.setattr(Layout, "drop_images", lambda self: dropped.append(self.id))
    migration = begun(journal, *DUMPED[:2], **way, rounds=[{}])
    if name_taken:
        put(migration, ANOTHER)
    create_dump.heal(migration)
    assert started == [] and migration.state is State.PREPARED and dropped == [ID]
    assert [path.name for path in layout_of(migration).own_snapshots()] == [f"{ID}.1", f"{ID}.2"]
    rollback.roll_back(migration, lambda: "")
    assert started == [] and str(migration.state) == "rolled-back"
    assert [path.name for path in layout_of(migration).own_snapshots()] == [f"{ID}.2"]


@WAYS
def test_of_one_that_is_there_nothing_of_that_stays(journal: Journal, started: list[str], way: dict[str, Any]) -> None:
    migration = begun(journal, *DUMPED[:2], **way, rounds=[{}])
    put(migration, ITS_OWN)
    create_dump.heal(migration)
    assert started == [""] and [path.name for path in layout_of(migration).own_snapshots()] == [f"{ID}.1"]
    rollback.roll_back(migration, lambda: "")
    assert layout_of(migration).own_snapshots() == []


def test_destroyed_while_a_dump_of_it_was_sent(journal: Journal, started: list[str]) -> None:
    """It was stopped for that, and the destination cannot be reached any more."""
    migration = begun(journal, *DUMPED[:2], memory=False, stopping=True, rounds=[{}])
    with pytest.raises(DowntimeExceeded):
        offer.give_up(migration, There(), TOO_LATE)  # type: ignore[arg-type]
    assert [path.name for path in layout_of(migration).own_snapshots()] == [f"{ID}.1", f"{ID}.2"]
    rollback.roll_back(migration, lambda: "")
    assert [path.name for path in layout_of(migration).own_snapshots()] == [f"{ID}.2"]


def test_another_one_of_that_name_is_not_gone_on_with(journal: Journal, started: list[str],
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """By any of the stages: each would remove the last copy, as what a round has left."""
    migration = begun(journal, *DUMPED[:2], memory=False, stopping=True, rounds=[{}])
    put(migration, ANOTHER)
    create_dump.heal(migration)
    container = lxc.Container("web", migration.lxcpath)
    monkeypatch.setattr(ask_state, "state", lambda *_: State.IMPORTED)
    monkeypatch.setattr(check, "before_stage", lambda *_, **__: pytest.fail("it goes on"))
    args = argparse.Namespace(dry_run=False)
    with pytest.raises(OutOfOrder, match="is another one") as refused:
        prepare_data.carry_out(args, journal, migration, container, There(), 0)  # type: ignore[arg-type]
    assert "migrator rollback web" in refused.value.hint
    with pytest.raises(OutOfOrder, match="is another one"):
        create_dump.carry_out(args, migration, container, There())  # type: ignore[arg-type]
    assert [path.name for path in layout_of(migration).own_snapshots()] == [f"{ID}.1", f"{ID}.2"]


def test_no_rollback_forgets_it_while_its_disk_is_away(journal: Journal, started: list[str]) -> None:
    migration = begun(journal, *DUMPED[:2], memory=False, stopping=True, rounds=[{}])
    create_dump.heal(migration)
    folder = layout_of(migration).folder
    folder.rename(folder.with_name("unmounted"))
    with pytest.raises(DiskAway) as away:
        rollback.roll_back(migration, lambda: pytest.fail("nobody is told"))
    assert away.value.hint.endswith(f"mkdir -p {folder}") and migration.state is State.PREPARED
    folder.with_name("unmounted").rename(folder)
    rollback.roll_back(migration, lambda: "")
    assert migration.detail["last_copy"] == [f"{ID}.2"]


def test_nor_one_that_it_is_away_from_while_the_other_host_is_asked(journal: Journal, started: list[str]) -> None:
    migration = begun(journal, *DUMPED[:2], memory=False, stopping=True, rounds=[{}])
    create_dump.heal(migration)
    folder = layout_of(migration).folder

    def unmounted() -> str:
        folder.rename(folder.with_name("unmounted"))
        return ""

    with pytest.raises(DiskAway):
        rollback.roll_back(migration, unmounted)
    assert str(migration.state) == "rolling-back" and "last_copy" not in migration.detail
    folder.with_name("unmounted").rename(folder)
    rollback.roll_back(migration, lambda: "")
    assert migration.detail["last_copy"] == [f"{ID}.2"]
