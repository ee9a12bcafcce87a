# SPDX-License-Identifier: GPL-2.0-or-later
"""How long until: not by the time of day, and never across a boot."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from migrator.base import boot_clock
from migrator.base.boot_clock import Moment


def test_it_counts_within_a_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "clock_gettime", lambda _: now[0])
    monkeypatch.setattr(time, "time", lambda: pytest.fail("the time of day is asked"))
    stamped = boot_clock.until(boot_clock.now() + 10, 10)
    now[0] += 7.5
    assert boot_clock.left(stamped) == 2.5
    now[0] += 7.5
    assert boot_clock.left(stamped) == 0.0


@pytest.mark.parametrize("stamped", [None, Moment("another", 1e9, 1.0)])
def test_what_is_of_another_boot_says_nothing(stamped: Moment | None) -> None:
    assert boot_clock.left(stamped) is None


def test_after_a_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boot_clock, "BOOT_ID", tmp_path / "boot_id")
    boot_clock.BOOT_ID.write_text("first\n")
    stamped = boot_clock.until(boot_clock.now() + 10, 10)
    assert boot_clock.left(stamped)
    boot_clock.BOOT_ID.write_text("second\n")
    assert boot_clock.left(stamped) is None
