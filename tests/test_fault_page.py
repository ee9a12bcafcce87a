# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/fault_matrix.md, as the last run of the fault matrix has left it: complete, and nothing in it is wrong."""

from __future__ import annotations

import pytest

from migrator.record.states import Event
from tests.rig.fault_kinds import FAULTS
from tests.rig.fault_table import GOOD, PAGE, cells_of

E = Event
# What every migration records on its way; the page has the steps within these states too.
WAY = {
    "source": (E.SEND, E.SENT, E.FREEZE, E.OFFER, E.TAKEN, E.FINISH, E.FINISHED),
    "destination": (E.RECEIVE, E.RECEIVED, E.IMPORT, E.IMPORTED, E.RECEIVE_DUMP, E.DUMP_RECEIVED, E.OWN, E.RESTORE,
                    E.RESTORED, E.FINISHED),
}


@pytest.mark.parametrize("moment", ["after", "before"])
def test_every_cell_is_there_and_good(moment: str) -> None:
    rows = cells_of(PAGE.read_text(), moment)
    assert len(rows) > 40
    for row, cells in rows.items():
        assert list(cells) == [fault.name for fault in FAULTS], row
        assert set(cells.values()) <= GOOD, row


@pytest.mark.parametrize("role", WAY)
def test_every_move_is_a_row(role: str) -> None:
    rows = cells_of(PAGE.read_text(), "after")
    for event in WAY[role]:
        assert any(row.startswith(f"on the {role}: {event}: ") for row in rows), event
