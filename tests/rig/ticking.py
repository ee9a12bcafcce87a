# SPDX-License-Identifier: GPL-2.0-or-later
"""A tick guest on hosta, on its way to hostb and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from harness.rig import Rig
from tests.rig.clean_hosts import CleanHosts
from tests.rig.moves import TO_B


@pytest.fixture
def guest(rig: Rig, clean_hosts: CleanHosts) -> Iterator[Callable[[], None]]:
    """A tick guest on hosta; the function proves that it is the one that was started and holds what it held."""
    rig.guest("hosta", "c1", "tick", ip="10.0.3.120")
    start = rig.probe("hosta", "c1")["start"]

    def intact() -> None:
        found = rig.probe("hosta", "c1")
        assert found["running"] and found["intact"] and found["start"] == start, found
        rig.reaches("client", "10.0.3.120")

    yield intact


def imported(rig: Rig) -> None:
    rig.migrator("hosta", "prepare-data", "c1", *TO_B).expect(0)
    rig.migrator("hostb", "import-data", "c1").expect(0)


def roll_back(rig: Rig, intact: Callable[[], None]) -> None:
    """The end of every test here: the source runs, and nothing of the attempt is left on either host."""
    rig.migrator("hosta", "rollback", "c1").expect(0)
    intact()
    assert rig.sh("hostb", "ls /pool").strip() == ""
    assert rig.leftovers() == []


def frozen(rig: Rig) -> bool:
    return rig.sh("hosta", "lxc-info -n c1 -sH").strip() == "FROZEN"
