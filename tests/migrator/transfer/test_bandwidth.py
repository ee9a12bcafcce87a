# SPDX-License-Identifier: GPL-2.0-or-later
"""How fast the way is, on links that carry so much by a clock that goes on for nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from migrator.transfer import bandwidth, frames
from migrator.transfer.messages import Measure, Measured
from migrator.transfer.rpc import Handler
from migrator.transfer.stream import Bytes
from migrator.transfer.wire_codec import decoded
from tests.effort import tries
from tests.migrator.wire import CutStream, connected


class Slow(CutStream):
    """A stream that carries `rate` bytes a second, by a clock that goes on for nothing else but `waits`, one of which
    each request takes besides: on the way, or because a processor was busy."""

    def __init__(self, rate: float, waits: Iterable[float] = ()) -> None:
        super().__init__()
        self.rate = rate
        self.now = 1000.0
        self.waits = iter(waits)

    def clock(self) -> float:
        return self.now

    def write(self, *buffers: Bytes) -> None:
        if (size := sum(map(len, buffers))) > frames.HEADER.size:  # a sign of life comes when this machine likes
            self.now += size / self.rate + next(self.waits, 0.0)
        super().write(*buffers)


def measured(link: Slow, asked: list[int] | None = None) -> float | None:
    with connected(handlers([] if asked is None else asked), link) as (connection, _):
        return bandwidth.measure(connection, link.clock)


def handlers(asked: list[int]) -> dict[str, Handler]:
    def measure(fields: dict[str, Any]) -> Measured:
        asked.append(len(str(fields["data"])))
        return bandwidth.answer(None, decoded(Measure, fields))

    return {"measure": measure}


@pytest.mark.parametrize("rate", [400_000.0, 8_000_000.0])
def test_a_slow_link(rate: float) -> None:
    asked: list[int] = []
    assert measured(Slow(rate), asked) == pytest.approx(rate, rel=0.01)
    assert sum(asked) < rate, "that would have taken longer than a second"


def test_a_long_way() -> None:
    """The requests of 64 KiB and 256 KiB take hardly longer than one for nothing: they do not tell."""
    assert measured(Slow(8_000_000.0, itertools.repeat(0.1))) == pytest.approx(8_000_000, rel=0.05)


def test_where_nothing_tells() -> None:
    """A slow answer to nothing, and then quick ones: once that made 61.0 GiB/s of a link of 4 MiB/s."""
    assert measured(Slow(1e12, itertools.repeat(0.2))) is None
    waits = [0.0, 0.3, 0.4, 0.3, *itertools.repeat(0.05, 9)]
    found = measured(Slow(4.0 * (1 << 20), waits))
    assert found is None or found < 8 * (1 << 20)


@settings(max_examples=tries(10, 200))
@given(st.floats(1e5, 1e10), st.lists(st.floats(0, 0.5), max_size=9))
def test_it_is_never_more_than_twice_too_much(rate: float, waits: list[float]) -> None:
    found = measured(Slow(rate, waits))
    assert found is None or 0 < found <= 2.01 * rate


def test_a_fast_one() -> None:
    asked: list[int] = []
    with connected(handlers(asked)) as (connection, _):
        found = bandwidth.measure(connection)
    assert found is None or found > 0
    assert asked == [0] * bandwidth.IDLE + list(bandwidth.SIZES)[: len(asked) - bandwidth.IDLE]
