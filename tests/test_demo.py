# SPDX-License-Identifier: GPL-2.0-or-later
"""What `make demo` promises, and how it tells that a promise was broken."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from bench import demo

GOOD: dict[str, Any] = {
    "frozen_ms": 839.4,
    "client": {"requests": 6055, "lost": 0, "wrong": 0, "longest_gap_ms": 790.1},
    "bytes": {"full": 130393016, "increment": 115, "memory": 93742694},
    "stages": [{"name": "check", "seconds": 0.47}, {"name": "finish", "seconds": 0.42}],
    "values_verified": 65536,
    "one_command": {"frozen_ms": 583.5, "seconds": 1.234, "longest_gap_ms": 801.2},
    "load": 1.25,
    "nat": {"path": "direct", "connect_ms": 2.6, "frozen_ms": 652.6, "seconds": 3.635},
}


def changed(**figures: float) -> dict[str, Any]:
    """`one_command_...` stands for what is below that key."""
    found = copy.deepcopy(GOOD)
    for key, value in figures.items():
        inner = key.removeprefix("one_command_")
        (found["one_command"] if inner != key else found if key in found else found["client"])[inner] = value
    return found


def test_good_figures() -> None:
    assert demo.broken_promises(GOOD) == []
    assert demo.broken_promises(changed(frozen_ms=1500, longest_gap_ms=2500)) == []
    assert demo.broken_promises(changed(one_command_frozen_ms=600, one_command_longest_gap_ms=1000)) == []


@pytest.mark.parametrize("figures", [{"lost": 1}, {"wrong": 1}, {"longest_gap_ms": 2500.1}, {"frozen_ms": 1500.1},
                                     {"one_command_frozen_ms": 600.1}, {"one_command_longest_gap_ms": 1000.1}])
def test_broken_promises(figures: dict[str, float]) -> None:
    (said,) = demo.broken_promises(changed(**figures))
    assert str(next(iter(figures.values()))) in said


def test_the_table_has_every_figure() -> None:
    text = demo.table(GOOD)
    for figure in ("839 ms", "6055", "0 / 0", "790 ms", "124.4 MiB", "0.0 MiB", "89.4 MiB", "0.47 s", "0.42 s",
                   "584 ms", "801 ms", "1.23 s", "direct", "653 ms", "3.63 s"):
        assert figure in text
    assert len({len(line) for line in text.splitlines()}) == 1


def test_its_commands_are_those_of_the_command_line() -> None:
    from migrator.cli import parse

    for stage, _, arguments in demo.STAGES:
        assert parse([stage, "web", *arguments]).command == stage
