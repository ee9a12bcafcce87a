# SPDX-License-Identifier: GPL-2.0-or-later
"""What `check` prints."""

from __future__ import annotations

import pytest

from migrator import log
from migrator.log import Level
from migrator.preflight.findings import Finding, Severity
from stages import check

FOUND = [Finding("a", Severity.ERROR, "One.", "Cure it."), Finding("b", Severity.WARNING, "Two.", ""),
         Finding("c", Severity.INFO, "Three.", "")]


@pytest.mark.parametrize(("level", "lines"), [
    (Level.NORMAL, ["error    a: One.", "         -> Cure it.", "warning  b: Two.", "info     c: Three.", "It is so."]),
    (Level.QUIET, ["error    a: One.", "         -> Cure it.", "warning  b: Two."]),
])
def test_quiet_says_errors_and_warnings_alone(monkeypatch: pytest.MonkeyPatch, level: Level, lines: list[str]) -> None:
    monkeypatch.setattr(log, "level", level)
    assert check.shown(FOUND, "It is so.").splitlines() == lines


def test_quiet_says_nothing_where_all_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "level", Level.QUIET)
    assert check.shown(FOUND[2:], "It is ready.") == ""
