# SPDX-License-Identifier: GPL-2.0-or-later
"""What runs on the destination is not on record there: the journal is an older one, or was lost."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

from pathlib import Path

import pytest

from migrator import btrfs, lxc, roots
from migrator.errors import CopyNotEnded, DumpRefused
from migrator.journal import Migration
from migrator.layout import Layout
from migrator.states import Event, Role, State
from stages import abandon, left_running, offer
from tests.stages.snapshots import SENT, disk  # noqa: F401 -- a fixture
from tests.stages.test_answers import ID, Destination, pool, there  # noqa: F401 -- fixtures

PID = 4711


@pytest.fixture
def lives(there: Destination, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The processes that live in what was made of this migration's snapshot, which lies on its disk."""
    path = there.layout.snapshot(1)
    path.mkdir(parents=True)
    (path / "uuid").write_text(SENT)
    found = [PID]
    monkeypatch.setattr(lxc, "container_processes", lambda _: [1, *found])
    monkeypatch.setattr(roots, "is_on_btrfs", lambda _: True)
    monkeypatch.setattr(Layout, "is_own", lambda here, root: (
        bool(here.own_snapshots()) and root in [Path(f"/proc/{pid}/root") for pid in found]))
    monkeypatch.setattr(btrfs, "id_of", lambda _: 300)
    monkeypatch.setattr(btrfs, "parent_of", lambda *_: "another")
    return found


def known(there: Destination) -> Migration:
    found = there.journal.by_id(ID, Role.DESTINATION)
    assert found
    return found


def imported(there: Destination) -> Migration:
    there.ask("begin")
    there.imported()
    known(there).note("rounds", rounds=[{"uuid": SENT}])
    return known(there)


@pytest.mark.parametrize("typed", [True, False])
def test_what_runs_does_so_by_an_older_journal_too(there: Destination, lives: list[int], typed: bool) -> None:
    """It was put back from a backup: by that it has only been imported."""
    migration = imported(there)
    with pytest.raises(CopyNotEnded, match=str(PID)) as error:
        if typed:
            abandon.give_up_here(migration)
        else:
            there.ask("abandon")
    assert "migrator rollback web" in error.value.hint
    assert known(there).state is State.IMPORTED and there.layout.snapshot(1).is_dir()
    lives.clear()
    there.ask("abandon")
    assert known(there).state is State.ABANDONED


def test_what_was_put_aside_is_another_container(there: Destination, lives: list[int],
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    imported(there)
    aside = there.layout.aside()
    aside.mkdir()
    monkeypatch.setattr(left_running, "_is_in", lambda folders, pid: pid == PID and folders == [aside])
    there.ask("abandon")
    assert known(there).state is State.ABANDONED


def test_what_was_begun_to_be_given_up_is(there: Destination, lives: list[int]) -> None:
    """The token is back already."""
    imported(there).move(Event.ABANDON, given_up_here=False, on_disk=True, kept=[])
    assert there.ask("abandon")["known"] is True


def test_a_disk_that_is_away_keeps_nobody(there: Destination, lives: list[int]) -> None:
    imported(there)
    there.pool.rename(there.pool.with_name("away"))
    there.pool.mkdir()
    there.ask("abandon")
    assert known(there).state is State.ABANDONING


def test_what_runs_is_not_unknown(there: Destination, lives: list[int]) -> None:
    """The journal was lost. By "unknown" a forced rollback of the source would go on."""
    for _ in range(2):
        with pytest.raises(CopyNotEnded, match=str(PID)):
            there.ask("abandon")
    lives.clear()
    assert there.ask("abandon")["known"] is False


def test_what_runs_of_another_migration_is_nobodys_business(there: Destination, lives: list[int]) -> None:
    assert there.ask("abandon", id="feedface")["known"] is False
    assert there.journal.by_id("feedface", Role.DESTINATION)


@pytest.mark.parametrize("attempt", [1, 2])
def test_the_offer_of_what_runs_is_not_refused(there: Destination, lives: list[int], attempt: int) -> None:
    """Made once more, as its answer was lost. By a refusal the source would thaw; and what tells whose that is goes."""
    imported(there).move(Event.RECEIVE_DUMP, attempt=1)
    increment = there.layout.snapshot(2)
    increment.mkdir()
    (increment / "uuid").write_text("of the dump")
    for _ in range(2):
        with pytest.raises(CopyNotEnded, match=str(PID)):
            there.ask("own", attempt=attempt)
    assert known(there).state is State.RECEIVING_DUMP and offer.attempt(known(there)) == 1 and increment.is_dir()
    lives.clear()
    with pytest.raises(DumpRefused):
        there.ask("own", attempt=attempt)
    assert known(there).state is State.IMPORTED and offer.attempt(known(there)) == attempt and not increment.exists()


def test_the_offer_of_what_runs_is_not_refused_by_who_has_lost_its_journal(there: Destination,
                                                                          lives: list[int]) -> None:
    with pytest.raises(CopyNotEnded):
        there.ask("abandon")
    with pytest.raises(CopyNotEnded, match=str(PID)):
        there.ask("own")
