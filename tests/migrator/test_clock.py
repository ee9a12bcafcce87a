# SPDX-License-Identifier: GPL-2.0-or-later
"""How long ago: not by the time of day, and never across a boot."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from migrator import clock


def test_it_counts_within_a_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "clock_gettime", lambda _: now[0])
    monkeypatch.setattr(time, "time", lambda: pytest.fail("the time of day is asked"))
    stamped = clock.stamp()
    now[0] += 7.5
    assert clock.age(stamped) == 7.5


@pytest.mark.parametrize("stamped", [None, {}, "yesterday", {"boot": "another", "seconds": 1.0}])
def test_what_is_of_another_boot_has_no_age(stamped: object) -> None:
    assert clock.age(stamped) is None


def test_after_a_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "BOOT_ID", tmp_path / "boot_id")
    clock.BOOT_ID.write_text("first\n")
    stamped = clock.stamp()
    assert clock.age(stamped) is not None
    clock.BOOT_ID.write_text("second\n")
    assert clock.age(stamped) is None
