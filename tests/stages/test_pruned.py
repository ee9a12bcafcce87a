# SPDX-License-Identifier: GPL-2.0-or-later
"""Which snapshots go when a migration has succeeded. Folders stand for subvolumes."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import pytest

from migrator.copies import bases
from migrator.record.migration_paths import Layout
from migrator.record.states import Event, Role
from tests.stages.kept_snapshots import FIRST, ID, KEY, ROOT, SECOND, Host, P, host  # noqa: F401 -- a fixture


@pytest.mark.parametrize("caller", [P, KEY])
@pytest.mark.parametrize("other", [ROOT, "peer:4567", "ssh:hostc"])
def test_another_callers_stay(host: Host, caller: str, other: str) -> None:
    """Under a name that two containers have, of two senders; be it that it says that it starts from the other's."""
    first = host.given_up(FIRST, other)
    came = host.came(ID, caller, f"{FIRST}.1")
    host.snapshot(ID, 2)
    host.snapshot("deadbeef")  # of which nothing is recorded
    bases.prune(came)
    assert host.left() == [f"{FIRST}.1", "deadbeef.1", f"{ID}.2"]
    assert first.copy.kept == [f"{FIRST}.1"]


@pytest.mark.parametrize("caller", [P, KEY])
def test_its_own_go(host: Host, caller: str) -> None:
    """What it has brought, and what went from here of the same container."""
    first = host.given_up(FIRST, caller)
    host.snapshot(SECOND)
    host.journal.create(id=SECOND, role=Role.SOURCE, name="web", lxcpath=host.pool, peer="hosta", event=Event.SEND,
                        rounds=[], origin="0000c350")
    came = host.came(ID, caller, f"{FIRST}.1", origin="0000c350")
    host.snapshot(ID, 2)
    bases.prune(came)
    assert host.left() == [f"{ID}.2"]
    assert host.journal.by_id(first.id, Role.DESTINATION).copy.kept == []  # type: ignore[union-attr]


def test_the_newest_of_its_own_stays(host: Host) -> None:
    came = host.came(ID, P)
    host.snapshot(ID, 2)
    host.given_up(FIRST, ROOT)
    bases.prune(came)
    assert host.left() == [f"{FIRST}.1", f"{ID}.2"]


@pytest.mark.parametrize("balanced", [(ID, 1), (FIRST, 1)], ids=["an earlier round", "an earlier migration's"])
def test_a_balance_makes_none_newer(host: Host, balanced: tuple[str, int]) -> None:
    """It was on one of the two hosts, and both shall keep the same one, or the next move sends all of the disk."""
    host.given_up(FIRST, ROOT, origin=ID)
    came = host.came(ID, ROOT)
    host.snapshot(ID, 2)
    path = Layout(host.pool, "web", balanced[0]).snapshot(balanced[1])
    (path / "generation").write_text("99 ")
    here = Layout(host.pool, "web", ID)
    uuids = bases.held(here)
    found = bases.for_round(here, uuids, uuids)
    assert uuids[-1] == f"{ID}.2" and found and found.path.name == f"{ID}.2"
    bases.prune(came)
    assert host.left() == [f"{ID}.2"]


@pytest.mark.parametrize("caller", [P, KEY, ROOT])
def test_another_containers_of_its_name_stays(host: Host, caller: str) -> None:
    """Whoever has brought it: it may be the last copy of that one, which was destroyed since."""
    first = host.given_up(FIRST, caller, "another root file system")
    came = host.came(ID, caller, "its own")
    host.snapshot(ID, 2, f"{ID}.1")
    bases.prune(came)
    assert host.left() == [f"{FIRST}.1", f"{ID}.2"]
    assert first.copy.kept == [f"{FIRST}.1"]


@pytest.mark.parametrize(("base", "first"), [("", f"{FIRST}.1"), ("its root file system", "its root file system")],
                         ids=["received upon it", "made of the same"])
def test_root_has_those_go_that_hang_together_with_it(host: Host, base: str, first: str) -> None:
    """It has never moved before, so no origin says that the attempts were of the same container."""
    host.given_up(FIRST, P, base)
    host.snapshot("deadbeef", of=first)  # of which nothing is recorded
    came = host.came(ID, ROOT, first)
    host.snapshot(ID, 2, first)
    bases.prune(came)
    assert host.left() == [f"{ID}.2"]
    assert host.journal.by_id(FIRST, Role.DESTINATION).copy.kept == []  # type: ignore[union-attr]


def test_what_was_made_of_its_root_file_system_as_recorded(host: Host) -> None:
    host.given_up(FIRST, ROOT, "of its disk")
    came = host.came(ID, ROOT, rootfs_uuid="of its disk")
    bases.prune(came)
    assert host.left() == [f"{ID}.1"]


@pytest.mark.parametrize("keep", [0, 1])
def test_a_last_copy_stays(host: Host, keep: int) -> None:
    """Also of the same origin: that container was destroyed here, and another copy of it has worked on elsewhere."""
    host.snapshot(FIRST)
    host.snapshot(FIRST, 2)
    left = host.journal.create(id=FIRST, role=Role.SOURCE, name="web", lxcpath=host.pool, peer="hosta",
                               event=Event.SEND, rounds=[], origin=SECOND)
    left.move(Event.ROLL_BACK)
    left.move(Event.ROLLED_BACK, last_copy=[f"{FIRST}.1"])
    came = host.came(ID, ROOT, f"{FIRST}.1", origin=SECOND)
    host.snapshot(ID, 2)
    gone = bases.prune(came, keep=keep)
    assert [path.name for path in gone] == [f"{FIRST}.2", f"{ID}.1", f"{ID}.2"][:3 - keep]
    assert host.left() == [f"{FIRST}.1", f"{ID}.2"][:1 + keep]


def test_nor_does_it_go_as_a_base(host: Host) -> None:
    first = host.given_up(FIRST, ROOT, last_copy=[f"{FIRST}.1"])
    bases.drop(first)
    assert host.left() == [f"{FIRST}.1"] and first.copy.kept == []
