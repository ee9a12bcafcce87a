# SPDX-License-Identifier: GPL-2.0-or-later
"""Every record of both hosts' journals under every fault: one copy runs in the end, nothing is lost, nothing is left.

`make test-all` strikes after each record and before it, and what came of each is written into docs/fault_matrix.md.
`make test` strikes after the records that tell a state, with the four faults that are the least alike.
`MIGRATOR_FAULT_STEP=offer` takes only the steps with that in their names, of all.
"""

from __future__ import annotations

import os

import pytest

from harness.rig import Rig
from tests.effort import ALL
from tests.rig import fault_table
from tests.rig.clean_hosts import CleanHosts
from tests.rig.fault_kinds import EACH_TIME, FAULTS, INTERRUPTED_WHILE_CUT
from tests.rig.fault_steps import Step, hooked, steps_of
from tests.rig.faults import Column, Fault
from tests.rig.told import as_text, told

pytestmark = pytest.mark.alone  # it has dozens of migrations at work at a time itself
STEP = os.environ.get("MIGRATOR_FAULT_STEP", "")
MOMENTS = ("after", "before") if ALL else ("after",)
STRUCK_BY = FAULTS if ALL or STEP else EACH_TIME
Columns = dict[tuple[str, str], list[str]]  # (moment, fault) -> cells


@pytest.fixture(scope="module")
def steps(rig: Rig) -> list[Step]:
    found = steps_of(rig)
    assert {step.role for step in found} == {"source", "destination"}
    assert len(found) > 40, "there were more when this was written"
    if STEP:
        return [step for step in found if STEP in f"{step.role}: {step}"]
    return [step for step in found if ALL or step.state]


def struck(steps: list[Step], moment: str) -> list[Step]:
    return [step for step in steps if not (moment == "before" and step.first)]


@pytest.fixture(scope="module")
def columns() -> Columns:
    """What has come of those that have run."""
    return {}


@pytest.mark.timeout(3600)  # faults.py has limits of its own
@pytest.mark.parametrize("fault", STRUCK_BY, ids=lambda fault: str(fault.name).replace(" ", "-"))
@pytest.mark.parametrize("moment", MOMENTS)
def test_fault(rig: Rig, clean_hosts: CleanHosts, steps: list[Step], columns: Columns, fault: Fault,
               moment: str) -> None:
    clean_hosts.allow("snapshot")  # the column itself says whose
    with hooked(rig):
        guests = Column(rig, fault, struck(steps, moment), moment).run()
    columns[moment, fault.name] = [guest.cell for guest in guests]
    for guest in guests:
        print(f"{guest.step.role}: {guest.step}: {guest.cell}   {guest.commands}\n{guest.outcome}")
    wrong = [guest for guest in guests if guest.cell not in fault_table.GOOD]
    if wrong:
        print(as_text(told(rig, [guest.name for guest in wrong])))
    assert not wrong, "\n".join(f"{guest.step.role}: {guest.step}: {guest.cell}\n{guest.outcome}" for guest in wrong)


@pytest.mark.nightly
@pytest.mark.skipif(bool(STEP), reason="only some steps were asked for")
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
    """With all of them it is written by this test; what a run finds is what the page says."""
    missing = [fault.name for fault in STRUCK_BY if (moment, fault.name) not in columns]
    assert not missing, f"these columns have no result: {missing}"
    found = {fault.name: columns[moment, fault.name] for fault in STRUCK_BY}
    if ALL:
        fault_table.put(fault_table.table(struck(steps, moment), found), moment)
    cells = [cell for column in found.values() for cell in column]
    assert len(cells) == len(struck(steps, moment)) * len(STRUCK_BY)
    assert set(cells) <= fault_table.GOOD
