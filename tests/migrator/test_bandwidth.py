# SPDX-License-Identifier: GPL-2.0-or-later
"""How fast the way is: on a link that carries so much, and on one that is limited by nothing but this machine."""

from __future__ import annotations

from typing import Any

import pytest

from migrator import bandwidth
from migrator.protocol import Handler
from migrator.stream import Bytes
from tests.migrator.wire import CutStream, connected


class Slow(CutStream):
    """A stream that carries `rate` bytes a second, by a clock that goes on for nothing else."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def write(self, *buffers: Bytes) -> None:
        self.now += sum(map(len, buffers)) / self.rate
        super().write(*buffers)


def handlers(asked: list[int]) -> dict[str, Handler]:
    def measure(fields: dict[str, Any]) -> dict[str, Any]:
        asked.append(len(str(fields["data"])))
        return bandwidth.answer(None, fields)

    return {"measure": measure}


@pytest.mark.parametrize("rate", [400_000.0, 8_000_000.0])
def test_a_slow_link(monkeypatch: pytest.MonkeyPatch, rate: float) -> None:
    asked: list[int] = []
    link = Slow(rate)
    monkeypatch.setattr(bandwidth, "time", link)
    with connected(handlers(asked), link) as (connection, _):
        found = bandwidth.measure(connection)
    assert found == pytest.approx(rate, rel=0.01)
    assert sum(asked) < rate, "that would have taken longer than a second"


def test_a_fast_one() -> None:
    asked: list[int] = []
    with connected(handlers(asked)) as (connection, _):
        assert max(bandwidth.measure(connection) for _ in range(5)) > 1_000_000
    assert asked[0] == 0 and asked[1] == bandwidth.SIZES[0]
