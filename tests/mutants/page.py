# SPDX-License-Identifier: GPL-2.0-or-later
"""The table in docs/reliability.md."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

from tests.mutants import explained
from tests.mutants.where import WHERE

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- mutants: begin -->", "<!-- mutants: end -->"


def write(found: list[dict[str, Any]]) -> None:
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(found)}\n{END}{after}")


def table(found: list[dict[str, Any]]) -> str:
    """By module: how many, who noticed how many, and why the others make no difference."""
    lines = ["| module | mutants | a test notices | mypy notices | make no difference |",
             "| --- | ---: | ---: | ---: | ---: |"]
    for file in (*WHERE, "all"):
        of = [each["status"] for each in found if file in (each["file"], "all")]
        by = collections.Counter(explained.NOTICED.get(status) for status in of)
        lines.append(f"| {file} | {len(of)} | {by['tests']} | {by['mypy']} | {by[None]} |")
    reasons: dict[str, list[explained.Change]] = {}
    for change, reason in explained.read(explained.FILE.read_text()):
        reasons.setdefault(reason, []).append(change)
    why = [f"- {reason} ({len(changes)} in {', '.join(sorted({change.file for change in changes}))})"
           for reason, changes in reasons.items()]
    return "\n".join([*lines, "", "Why these make no difference:", "", *why, ""])
