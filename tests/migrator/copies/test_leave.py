# SPDX-License-Identifier: GPL-2.0-or-later
"""For how long a source's word holds, as each of the two hosts counts it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from migrator.base import boot_clock
from migrator.base.boot_clock import Moment
from migrator.copies import leave
from migrator.copies.leave import Leave
from migrator.errors.connection import ProtocolError
from migrator.transfer.frames import Frame, Kind


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock of a host, which somebody else moves on."""
    found = [1000.0]
    monkeypatch.setattr(boot_clock, "now", lambda: found[0])
    return found


def test_it_is_outstanding_until_it_is_over(now: list[float]) -> None:
    assert leave.outstanding(None) == 0.0, "it was never given"
    word = leave.given(None, 60.0)
    now[0] += 20
    assert leave.outstanding(word) == 40.0
    now[0] += 50
    assert leave.outstanding(word) == 0.0


def test_a_clock_that_is_slower_has_its_time_too(now: list[float]) -> None:
    word = leave.given(None, 100.0)
    now[0] += 100
    assert leave.outstanding(word) == 0.0 and leave.outstanding(word, 0.01) == pytest.approx(1.0)
    now[0] += 1.5
    assert leave.outstanding(word, 0.01) == 0.0


def test_a_later_word_takes_no_earlier_one_back(now: list[float]) -> None:
    """Who was told so may still act on it."""
    word = leave.given(None, 600.0)
    now[0] += 100
    assert leave.outstanding(leave.given(word, 60.0)) == 500.0
    assert leave.outstanding(leave.given(word, 900.0)) == 900.0


def test_nor_the_part_by_which_the_other_clock_may_be_behind(now: list[float]) -> None:
    """NTP may slow it down by a tenth, and have this one run faster by as much."""
    word = leave.given(None, 1000.0)
    now[0] += 1000 * 1.1 / 0.9 - 1
    assert leave.outstanding(word) == 0.0 and leave.outstanding(word, leave.SLACK) > 1
    word = leave.given(leave.given(None, 1000.0), 1.0)
    now[0] += 990
    word = leave.given(word, 1.0)
    now[0] += 1000 * 1.1 / 0.9 - 991
    assert leave.outstanding(word, leave.SLACK) > 1
    now[0] += 1000
    assert leave.given(word, 60.0).lasts == 60.0, "once that is over, it is"


def test_after_a_reboot_of_the_source_it_is_outstanding_as_a_whole(tmp_path: Path,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    word = leave.given(None, 60.0)
    monkeypatch.setattr(boot_clock, "BOOT_ID", tmp_path / "boot_id")
    boot_clock.BOOT_ID.write_text("another\n")
    assert leave.outstanding(word) == 60.0


class Said:
    """A connection over which one frame comes, a while later."""

    timeout = 15.0

    def __init__(self, now: list[float], after: float, body: bytes, kind: Kind = Kind.GO) -> None:
        self.now, self.after, self.body, self.kind = now, after, body, kind

    def receive(self, *, within: float) -> Any:
        assert within == self.timeout
        self.now[0] += self.after
        return Frame(self.kind, 0, memoryview(self.body))


def test_it_counts_from_before_the_first_answer(now: list[float]) -> None:
    """However long this host has stood still since, and whatever lay in its pipes then."""
    word = Leave(Said(now, 3600.0, b'{"within": 60}'), since=now[0])  # type: ignore[arg-type]
    assert word.wait() == 1060.0 < now[0]
    assert word.wait() == 1060.0, "it is not awaited twice"


@pytest.mark.parametrize("body", [b"", b"{}", b'{"within": "60"}', b'{"within": -1}', b'{"within": NaN}',
                                  b'{"within": Infinity}', b'{"within": 1e6}'])
def test_a_word_that_does_not_say_for_how_long_is_none(now: list[float], body: bytes) -> None:
    with pytest.raises(ProtocolError):
        Leave(Said(now, 0.0, body), since=now[0]).wait()  # type: ignore[arg-type]


@pytest.mark.parametrize("within", [0, 0.5, 999_999])
def test_for_how_long_it_is_said(now: list[float], within: float) -> None:
    word = Leave(Said(now, 1.0, b'{"within": %s}' % str(within).encode()), since=now[0])  # type: ignore[arg-type]
    assert word.seconds == 0.0, "before it has come"
    assert word.wait() == 1000.0 + within and word.seconds == within


@pytest.mark.parametrize("kind", [Kind.REQUEST, Kind.END])
def test_another_frame_is_no_word(now: list[float], kind: Kind) -> None:
    with pytest.raises(ProtocolError, match=f"it sent {kind.name} where"):
        Leave(Said(now, 0.0, b'{"within": 60}', kind), since=now[0]).wait()  # type: ignore[arg-type]


def test_what_the_source_writes_down(now: list[float]) -> None:
    boot = boot_clock.BOOT_ID.read_text().strip()
    assert leave.given(None, 60.0) == Moment(boot, 1060.0, 60.0)


def test_a_slower_clock_and_a_reboot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    word = leave.given(None, 100.0)
    monkeypatch.setattr(boot_clock, "BOOT_ID", tmp_path / "boot_id")
    boot_clock.BOOT_ID.write_text("another\n")
    assert leave.outstanding(word, 0.01) == pytest.approx(101.0)
