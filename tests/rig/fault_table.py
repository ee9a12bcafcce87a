# SPDX-License-Identifier: GPL-2.0-or-later
"""The fault matrix as a table, and docs/fault_matrix.md, where the tests put it."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Mapping, Sequence

from harness.rig import TREE
from tests.rig.fault_steps import Step

PAGE = TREE / "docs" / "fault_matrix.md"
GOOD = {"moved", "back", *(f"{was}, then {end}" for was in ("runs on", "frozen", "runs there")
                           for end in ("moved", "back"))}


def marks(moment: str) -> tuple[str, str]:
    """What a table stands between."""
    return f"<!-- {moment}: begin -->", f"<!-- {moment}: end -->"


def table(steps: Sequence[Step], columns: Mapping[str, Sequence[str]]) -> str:
    """Rows: steps; columns: faults, each with the cells of all steps."""
    when = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    cells = [cell for column in columns.values() for cell in column]
    wrong = sum(cell not in GOOD for cell in cells)
    lines = [f"{when}, Linux {platform.release()}, {os.cpu_count()} cores: {len(cells)} cells, {wrong} of them wrong."]
    for role in dict.fromkeys(step.role for step in steps):
        lines += ["", f"| on the {role} | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]
        lines += [f"| {step} | {' | '.join(column[number] for column in columns.values())} |"
                  for number, step in enumerate(steps) if step.role == role]
    return "\n".join(lines)


def put(text: str, moment: str) -> None:
    """Write a table between its marks."""
    begin, end = marks(moment)
    before, _, rest = PAGE.read_text().partition(begin)
    after = rest.partition(end)[2]
    PAGE.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")


def cells_of(page: str, moment: str) -> dict[str, dict[str, str]]:
    """A page's table: cells by row (`on the source: send: preparing`) and column."""
    begin, end = marks(moment)
    found: dict[str, dict[str, str]] = {}
    head: list[str] = []
    for line in page.partition(begin)[2].partition(end)[0].splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("| on the "):
            head = cells
        elif line.startswith("| ") and not line.startswith("| ---"):
            found[f"{head[0]}: {cells[0]}"] = dict(zip(head[1:], cells[1:], strict=True))
    return found
