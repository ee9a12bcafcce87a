# SPDX-License-Identifier: GPL-2.0-or-later
"""The pure parts of migrate and resume: when rounds stop, what is predicted, what options a resume takes."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrator import cli
from migrator.record.detail import Begun, DiskRound, Options
from migrator.record.journal import Migration
from migrator.transfer import plan
from migrator.transfer.plan import Plan, Round
from stages import migrate, resume
from stages.steps.options import MoveOptions, MoveRequest

MIB = 1 << 20
GIB = 1 << 30
SIZE = st.integers(0, 1 << 50)


def sent(*rounds: tuple[int, float]) -> list[Round]:
    """Rounds of (MiB, seconds), the first one full."""
    return [Round(size * MIB, size * MIB, seconds, number == 0) for number, (size, seconds) in enumerate(rounds)]


@pytest.mark.parametrize(("rounds", "rule"), [
    ([], ""),
    ([(4000, 40.0)], ""),
    ([(4000, 40.0), (400, 4.0)], ""),
    ([(4000, 40.0), (400, 4.0), (40, 0.4)], ""),
    ([(4000, 40.0), (400, 4.0), (40, 0.4), (20, 0.2)], "small"),
    ([(4000, 40.0), (1, 2.0)], "small"),
    ([(100, 0.3)], "small"),
    ([(4000, 40.0), (3000, 30.0)], "no-gain"),
    ([(4000, 40.0), (400, 4.0), (390, 4.0)], "no-gain"),
    ([(4000, 40.0), (2000, 20.0), (1000, 10.0), (500, 5.0), (250, 2.5)], "limit"),
])
def test_when_rounds_stop(rounds: list[tuple[int, float]], rule: str) -> None:
    found, why = plan.stop(sent(*rounds), 5)
    assert found == rule
    assert bool(why) == bool(rule)


@given(st.lists(st.builds(Round, SIZE, SIZE, st.floats(0, 1e6), st.booleans()), max_size=12), st.integers(1, 9))
def test_rounds_always_stop(rounds: list[Round], most: int) -> None:
    if len(rounds) >= most:
        assert plan.stop(rounds, most)[0]
    if not rounds:
        assert not plan.stop(rounds, most)[0]


def test_the_rate_is_that_of_the_largest_round() -> None:
    assert plan.rate([]) is None
    assert plan.rate(sent((0, 0.05))) is None, "the start of programs tells nothing of the network"
    assert plan.rate(sent((100, 2.0), (1, 0.1))) == 50 * MIB
    assert plan.rate(sent((100, 2.0)), 70 * MIB) == 70 * MIB, "the round had waited for something else"
    assert plan.rate(sent((100, 2.0)), 7 * MIB) == 50 * MIB
    assert plan.rate([], 7 * MIB) == 7 * MIB


def test_the_rate_is_what_went_over_the_wire() -> None:
    """Not what was there from an earlier attempt, or became small by compression."""
    resumed = Round(61 * GIB, 8 * MIB, 2.0, True)
    assert plan.rate([resumed]) == 4 * MIB
    assert "At 4.0 MiB/s" in dataclasses.replace(planned(), rounds=(resumed,)).text
    assert plan.rate([Round(61 * GIB, 1000, 2.0, True)]) is None


def planned(*rounds: tuple[int, float], memory: int | None = GIB) -> Plan:
    return Plan("web", "beta", 10 * GIB, memory, 5, 120.0, tuple(sent(*rounds)))


def test_the_prediction() -> None:
    unknown = planned()
    assert unknown.still_seconds is None and "not known" in unknown.text
    measured = dataclasses.replace(unknown, measured=100.0 * MIB).still_seconds
    assert measured is not None, "before the first round"
    first = planned((1000, 10.0)).still_seconds
    assert first == pytest.approx(measured)
    assert first is not None
    assert first == pytest.approx(plan.FIXED_SECONDS + plan.RESTORE_SECONDS_PER_BYTE * GIB + 10.24)
    fast = planned((10_000, 1.0)).still_seconds
    assert fast == pytest.approx(
        plan.FIXED_SECONDS + (plan.RESTORE_SECONDS_PER_BYTE + plan.DUMP_SECONDS_PER_BYTE) * GIB)
    second = planned((1000, 10.0), (100, 1.0)).still_seconds
    assert second == pytest.approx(first + 1.0), "the last changes are sent while it is frozen, too"
    assert "120" in planned((1000, 10.0)).text or "2 min" in planned((1000, 10.0)).text


@given(st.integers(0, 1 << 45), st.integers(1, 1 << 40), st.floats(0.01, 1e6))
def test_more_memory_takes_longer(memory: int, size: int, seconds: float) -> None:
    rounds = (Round(0, size + plan.RATE_BYTES, seconds, True),)
    less, more = (Plan("web", "beta", 0, m, 5, 9.0, rounds).still_seconds for m in (memory, memory + GIB))
    assert less is not None and more is not None and plan.FIXED_SECONDS <= less < more


def test_predicted_against_actual() -> None:
    assert plan.compared(0.5, 0.62) == "Frozen for 0.62 s (predicted 0.50 s)."
    assert "not be predicted" in plan.compared(None, 0.62)


def test_without_memory_it_is_the_last_changes_that_count() -> None:
    """What its programs take to end nobody knows before: it is told apart."""
    unknown = planned(memory=None)
    assert unknown.still_seconds is None and "without its memory" in unknown.text and "killed" in unknown.text
    found = planned((1000, 10.0), (100, 1.0), memory=None)
    assert found.still_seconds == pytest.approx(plan.FIXED_SECONDS_STOPPED + 1.0)
    assert "frozen" not in found.text and "to end" in found.prediction
    assert {"predicted_stopped_seconds", "memory_bytes"} <= found.to_json().keys()
    assert "predicted_frozen_seconds" not in found.to_json()
    assert plan.compared(0.5, 3.25, 2.75) == "Stopped for 3.25 s: 2.75 s to end, 0.50 s to move (predicted 0.50 s)."


def test_a_round_of_an_earlier_version_has_no_seconds() -> None:
    assert Round.sent([DiskRound(bytes=7, full=True, uuid="x")]) == (Round(7, 0, 0.0, True),)


class Recorded:
    """What `resume` looks at of a migration for its options."""

    name = "web"

    def __init__(self, **options: Any) -> None:
        self.peer = "root@beta"
        self.begun = Begun(options=msgspec.convert(options, Options) if options else None)


def resumed(*argv: str, **options: Any) -> tuple[MoveRequest, MoveOptions]:
    asked = cli.parse(["resume", "web", *argv]).options
    assert isinstance(asked, resume.ResumeOptions)
    migration = cast("Migration", Recorded(**options))
    return asked.request(migration), MoveOptions.resumed(migration, asked.given)


def test_a_resume_goes_on_with_the_options_of_the_beginning() -> None:
    begun: dict[str, Any] = {"max_downtime": 5.0, "max_rounds": 2, "bwlimit": 1000, "reconnect": 7.0,
                             "stop_timeout": 9.0, "ignore": ["x"], "undefine_source": True}
    request, again = resumed(**begun)
    assert again == MoveOptions(**begun | {"ignore": ("x",)})
    assert msgspec.json.decode(msgspec.json.encode(again.record())) == begun
    assert request.destination == "root@beta"
    request, other = resumed("--max-downtime", "9", "--keep-source", "--ignore", "y", "-d", "beta", **begun)
    assert (other.max_downtime, other.undefine_source, other.ignore) == (9.0, False, ("y",))
    assert (other.bwlimit, request.destination) == (1000, "beta")


def test_a_resume_of_stages_by_hand_has_the_defaults_of_migrate() -> None:
    fresh = cli.parse(["migrate", "web", "-d", "beta"]).options
    assert isinstance(fresh, migrate.MigrateOptions)
    assert resumed()[1] == fresh.move == MoveOptions()
