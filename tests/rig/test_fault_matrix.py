# SPDX-License-Identifier: GPL-2.0-or-later
"""Every record of both hosts' journals under every fault: one copy runs in the end, nothing is lost, nothing is left.

What came of each is written into docs/fault_matrix.md. `MIGRATOR_FAULT_MOMENTS="after before"` strikes before each
record is made, too: a nightly-length run. `MIGRATOR_FAULT_STEP=offer` takes only the steps with that in their names.
"""

from __future__ import annotations

import os

import pytest

from tests.rig import fault_table
from tests.rig.conftest import CleanHosts
from tests.rig.fault_kinds import FAULTS, INTERRUPTED_WHILE_CUT
from tests.rig.fault_steps import Step, hooked, steps_of
from tests.rig.faults import Column, Fault
from tests.rig.harness import Rig

MOMENTS = os.environ.get("MIGRATOR_FAULT_MOMENTS", "after").split()
STEP = os.environ.get("MIGRATOR_FAULT_STEP", "")
Columns = dict[tuple[str, str], list[str]]  # (moment, fault) -> cells


@pytest.fixture(scope="module")
def steps(rig: Rig) -> list[Step]:
    found = steps_of(rig)
    assert {step.role for step in found} == {"source", "destination"}
    assert len(found) > 40, "there were more when this was written"
    return [step for step in found if STEP in f"{step.role}: {step}"]


@pytest.fixture(scope="module")
def columns() -> Columns:
    """What has come of those that have run."""
    return {}


@pytest.mark.timeout(1800)  # faults.py has limits of its own
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: str(fault.name).replace(" ", "-"))
@pytest.mark.parametrize("moment", MOMENTS)
def test_fault(rig: Rig, clean_hosts: CleanHosts, steps: list[Step], columns: Columns, fault: Fault,
               moment: str) -> None:
    clean_hosts.allow("snapshot")  # the column itself says whose
    with hooked(rig):
        guests = Column(rig, fault, steps, moment).run()
    columns[moment, fault.name] = [guest.cell for guest in guests]
    for guest in guests:
        print(f"{guest.step.role}: {guest.step}: {guest.cell}   {guest.commands}\n{guest.outcome}")
    wrong = [f"{guest.step.role}: {guest.step}: {guest.cell}\n{guest.outcome}" for guest in guests
             if guest.cell not in fault_table.GOOD]
    assert not wrong, "\n".join(wrong)


def test_interrupted_while_the_link_is_down(rig: Rig, clean_hosts: CleanHosts, steps: list[Step]) -> None:
    """Two faults at once: what was given up without the destination's word is told when it can be."""
    clean_hosts.allow("snapshot")
    chosen = [step for step in steps if step.state and step.step in ("sent", "freeze", "offer", "imported", "own")]
    with hooked(rig):
        guests = Column(rig, INTERRUPTED_WHILE_CUT, chosen, "after").run()
    cells = {str(guest.step): guest.cell for guest in guests}
    assert cells == {
        "sent: prepared": "runs on, then back", "freeze: dumping": "runs on, then back",
        "offer: offered": "runs on, then back", "imported: imported": "runs on, then back",
        "own: owned": "frozen, then moved",
    }


@pytest.mark.skipif(bool(STEP), reason="only some steps were asked for")
@pytest.mark.parametrize("moment", MOMENTS)
def test_the_table_has_every_cell(steps: list[Step], columns: Columns, moment: str) -> None:
    """It is written by this test; what a run finds is what the page says."""
    missing = [fault.name for fault in FAULTS if (moment, fault.name) not in columns]
    assert not missing, f"these columns have no result: {missing}"
    found = {fault.name: columns[moment, fault.name] for fault in FAULTS}
    fault_table.put(fault_table.table(steps, found), moment)
    cells = [cell for column in found.values() for cell in column]
    assert len(cells) == len(steps) * len(FAULTS)
    assert set(cells) <= fault_table.GOOD
