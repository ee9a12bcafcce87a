# SPDX-License-Identifier: GPL-2.0-or-later
"""What prepare-guest finds in a container whose services it has restarted."""

from __future__ import annotations

from typing import Any, cast

import pytest

from migrator.preflight.findings import Finding, Severity
from stages import prepare_guest


def finding(message: str, severity: Severity = Severity.ERROR) -> Finding:
    return Finding("unix-socket-outside", severity, message, "")


NOTE, PASSING, LASTING = finding("note", Severity.INFO), finding("a service just starts"), finding("a service runs")


@pytest.mark.parametrize(("looks", "left"), [
    ([[NOTE]], [NOTE]),
    ([[PASSING], [NOTE]], [NOTE]),
    ([[LASTING], [LASTING, NOTE]], [LASTING, NOTE]),
    ([[PASSING, LASTING], [LASTING], [LASTING]], [LASTING]),
    ([[finding(str(number))] for number in range(prepare_guest.LOOKS + 1)], [finding(str(prepare_guest.LOOKS))]),
])
def test_what_passes_does_not_count(monkeypatch: pytest.MonkeyPatch, looks: list[list[Finding]], left: list[Finding]
                                    ) -> None:
    shown = iter(looks)
    monkeypatch.setattr(prepare_guest, "_look", lambda _: next(shown))
    monkeypatch.setattr(prepare_guest, "PAUSE", 0)
    assert prepare_guest._settled(cast("Any", None)) == left
    assert list(shown) == [], "no more often than that"
