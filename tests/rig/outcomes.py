# SPDX-License-Identifier: GPL-2.0-or-later
"""How a command that has failed says so."""

from __future__ import annotations

from harness.rig import Outcome

RUNS_AGAIN, STILL_FROZEN, UNKNOWN = 3, 4, 5


def failed(outcome: Outcome, status: int, code: str) -> dict[str, object]:
    """The cause of a failed stage with this outcome, if it is the one expected."""
    error = outcome.expect(status).error
    found = error["cause"] if status in (RUNS_AGAIN, STILL_FROZEN, UNKNOWN) else error
    assert found["code"] == code, outcome
    assert found["status"] >= 10, "each cause has a number of its own"
    return dict(error)
