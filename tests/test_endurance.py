# SPDX-License-Identifier: GPL-2.0-or-later
"""How an endurance run is judged."""

from __future__ import annotations

from typing import Any

import pytest

from bench import growth, waits
from bench.endurance import Hop, Run, tables, wrong
from migrator.record.journal import KEPT

HOST = {"veths": 2, "migrations in the journal": 2, "its memory in bytes": 90 << 20}


def good() -> Run:
    """Twelve trips with nothing wrong."""
    hops = [Hop(number, "hosta", "hostb", 500.0 + number % 5, 1.0, 1000.0 + number, 2.0, 600.0)
            for number in range(1, 25)]
    return Run("redis", hops, [{"hosta": dict(HOST), "hostb": {"veths": 1}} for _ in range(12)],
               {"requests": 9000, "lost": 0, "wrong": 0, "problem": None, "seconds": 60.0}, {"intact": True})


def test_a_good_run() -> None:
    run = good()
    assert wrong(run) == []
    text = tables(run)
    assert "| veths | 2 | 2 | 2 | 1 | 1 | 1 | +0 |" in text
    assert "| frozen | 502 | 504 | 502 | 502 |" in text
    assert "Nothing was lost" in text


@pytest.mark.parametrize(("what", "value", "bad"), [
    ("veths", 3, True), ("veths", 2, False), ("its memory in bytes", 97 << 20, False),
    ("its memory in bytes", 99 << 20, True), ("migrations in the journal", KEPT + 1, False),
    ("migrations in the journal", KEPT + 2, True),
])
def test_growth(what: str, value: int, bad: bool) -> None:
    run = good()
    run.counts[-1]["hosta"][what] = value
    assert [what in line for line in wrong(run)] == [True] * bad


def test_what_was_not_there_at_first_has_grown() -> None:
    assert growth.grown([{"hosta": {}}, {"hosta": {"veths": 1}}])


@pytest.mark.parametrize("change", [
    {"client": {"lost": 1}}, {"client": {"wrong": 1}}, {"client": {"problem": "reset"}}, {"probe": {"intact": False}},
    {"started_anew": True},
])
def test_what_is_lost(change: dict[str, Any]) -> None:
    run = good()
    for key, value in change.items():
        if isinstance(value, dict):
            getattr(run, key).update(value)
        else:
            setattr(run, key, value)
    assert len(wrong(run)) == 1


def test_slower_and_slower() -> None:
    run = good()
    for hop in run.hops:
        hop.frozen_ms += 20 * hop.number
    (said,) = wrong(run)
    assert said.startswith("frozen: the median went from")


def test_a_failed_attempt_is_told() -> None:
    run = good()
    run.hops[3].failures.append("exit status 3: CRIU")
    assert wrong(run) == ["hop 4 needed another attempt: exit status 3: CRIU"]


def test_a_wait_belongs_to_its_move() -> None:
    gaps = [{"until": 999.9, "ms": 70.0}, {"until": 1000.8, "ms": 750.0}, {"until": 1001.0, "ms": 60.0},
            {"until": 1003.0, "ms": 2100.0}]
    assert waits.longest(gaps, 1000.0, 1000.5) == 750.0
    assert waits.longest(gaps[2:3], 1000.0, 1000.5) == 0.0
    assert waits.longest([], 1000.0, 1000.5) == 0.0
