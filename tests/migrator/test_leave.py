# SPDX-License-Identifier: GPL-2.0-or-later
"""For how long a source's word holds, as each of the two hosts counts it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from migrator import clock, leave
from migrator.errors import ProtocolError
from migrator.frames import Frame, Kind
from migrator.leave import Leave


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock of a host, which somebody else moves on."""
    found = [1000.0]
    monkeypatch.setattr(clock, "now", lambda: found[0])
    return found


def test_it_is_outstanding_until_it_is_over(now: list[float]) -> None:
    assert leave.outstanding({}) == 0.0, "it was never given"
    detail = leave.given({}, 60.0)
    now[0] += 20
    assert leave.outstanding(detail) == 40.0
    now[0] += 50
    assert leave.outstanding(detail) == 0.0


def test_a_clock_that_is_slower_has_its_time_too(now: list[float]) -> None:
    detail = leave.given({}, 100.0)
    now[0] += 100
    assert leave.outstanding(detail) == 0.0 and leave.outstanding(detail, 0.01) == pytest.approx(1.0)
    now[0] += 1.5
    assert leave.outstanding(detail, 0.01) == 0.0


def test_a_later_word_takes_no_earlier_one_back(now: list[float]) -> None:
    """Who was told so may still act on it."""
    detail = leave.given({}, 600.0)
    now[0] += 100
    assert leave.outstanding(leave.given(detail, 60.0)) == 500.0
    assert leave.outstanding(leave.given(detail, 900.0)) == 900.0


def test_after_a_reboot_of_the_source_it_is_outstanding_as_a_whole(tmp_path: Path,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    detail = leave.given({}, 60.0)
    monkeypatch.setattr(clock, "BOOT_ID", tmp_path / "boot_id")
    clock.BOOT_ID.write_text("another\n")
    assert leave.outstanding(detail) == 60.0


@pytest.mark.parametrize(("asked", "given"), [
    (60, 60.0), (0, 0.0), (1e9, leave.MOST), (-1, leave.MOST), (math.nan, leave.MOST), ("60", leave.MOST),
    (None, leave.MOST),
])
def test_who_asks_for_more_than_makes_sense(asked: object, given: float) -> None:
    assert leave.asked_for(asked) == given


class Said:
    """A connection over which one frame comes, a while later."""

    timeout = 15.0

    def __init__(self, now: list[float], after: float, body: bytes) -> None:
        self.now, self.after, self.body = now, after, body

    def receive(self, *, within: float) -> Any:
        self.now[0] += self.after
        return Frame(Kind.GO, 0, memoryview(self.body))


def test_it_counts_from_before_the_first_answer(now: list[float]) -> None:
    """However long this host has stood still since, and whatever lay in its pipes then."""
    word = Leave(Said(now, 3600.0, b'{"within": 60}'), since=now[0])  # type: ignore[arg-type]
    assert word.wait() == 1060.0 < now[0]
    assert word.wait() == 1060.0, "it is not awaited twice"


@pytest.mark.parametrize("body", [b"", b"{}", b'{"within": "60"}', b'{"within": -1}', b'{"within": NaN}',
                                  b'{"within": Infinity}'])
def test_a_word_that_does_not_say_for_how_long_is_none(now: list[float], body: bytes) -> None:
    with pytest.raises(ProtocolError):
        Leave(Said(now, 0.0, body), since=now[0]).wait()  # type: ignore[arg-type]
