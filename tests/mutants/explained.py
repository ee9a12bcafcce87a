# SPDX-License-Identifier: GPL-2.0-or-later
"""The mutants that may survive, each with the reason: explained.txt.

    migrator/record/journal.py
    - the line as it is
    + the line as the mutant has it
    because it makes no difference that ...

Several mutants of one kind stand below each other before the reason that they share. An explanation goes by the lines'
text, so that it holds when code moves, and no longer when the line itself changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

FILE = Path(__file__).with_name("explained.txt")


class Change(NamedTuple):
    """What a mutant is: lines taken out of a file and put in, without their indentation."""

    file: str
    removed: tuple[str, ...]
    added: tuple[str, ...]


NOTICED = {"killed": "tests", "timeout": "tests", "caught by type check": "mypy"}


def judge(found: list[dict[str, Any]], files: list[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Those that nobody has explained, and what was explained of `files` and has not survived."""
    known = dict(read(FILE.read_text()))
    survived = [each for each in found if each["status"] not in NOTICED]
    unexplained = [each for each in survived if change_of(each) not in known]
    there = {change_of(each) for each in survived}
    stale = [f"{change.file}: {' / '.join(change.removed)} -> {' / '.join(change.added)}"
             for change in known if change.file in files and change not in there]
    return unexplained, stale


def change_of(mutant: dict[str, Any]) -> Change:
    lines = mutant["diff"].splitlines()[2:]
    return Change(mutant["file"], tuple(line[1:].strip() for line in lines if line.startswith("-")),
                  tuple(line[1:].strip() for line in lines if line.startswith("+")))


def read(text: str) -> Iterator[tuple[Change, str]]:
    """Each change with its reason; raises ValueError for a line that is none of the four kinds."""
    for block in text.split("\n\n"):
        file, changes = "", list[tuple[list[str], list[str]]]()
        reason: list[str] = []
        for line in block.splitlines():
            if line.startswith("#"):
                continue
            if line.startswith("- ") and (not changes or changes[-1][1]):
                changes.append(([line[2:]], []))
            elif line.startswith("- "):
                changes[-1][0].append(line[2:])
            elif line.startswith("+ ") and changes:
                changes[-1][1].append(line[2:])
            elif line.startswith(("because ", "  ")) and changes:
                reason.append(line.strip().removeprefix("because "))
            elif line.endswith(".py") and not changes:
                file = line
            elif line.strip():
                raise ValueError(line)
        for removed, added in changes:
            yield Change(file, tuple(removed), tuple(added)), " ".join(reason)
