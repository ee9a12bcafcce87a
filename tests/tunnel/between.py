# SPDX-License-Identifier: GPL-2.0-or-later
"""Two echoes and the network between them, which loses, holds back and cuts as a test says; made in a running loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from migrator.base.clock import now
from tunnel.health.echo import Echo


class Between:
    """The network: what one echo sends arrives at the other as `rule` decides, given size and side.

    `rule` returns seconds of delay, None to lose it.
    """

    def __init__(self) -> None:
        self.rule: Callable[[int, int], float | None] = lambda size, side: 0.0
        self.ends = [End(self, side) for side in (0, 1)]
        self.echoes = [Echo(end) for end in self.ends]

    def carry(self, side: int, data: bytes) -> None:
        """Towards the other side."""
        delay = self.rule(len(data), side)
        if delay is not None:
            asyncio.get_running_loop().call_later(delay, self.arrive, 1 - side, data)

    def arrive(self, side: int, data: bytes) -> None:
        """At that side."""
        if not self.ends[side].closed:
            self.echoes[side].take(data, round(now() * 1e9))

    def cut(self) -> None:
        """From now on everything is lost."""
        self.rule = lambda size, side: None

    def narrow(self, mbit_s: float, room: float) -> None:
        """From now on side 0's packets pass one after another, and are lost where one would wait for `room` seconds."""
        free = 0.0

        def rule(size: int, side: int) -> float | None:
            nonlocal free
            if side == 1:
                return 0.0
            if free - now() > room:
                return None
            free = max(free, now()) + size * 8 / (mbit_s * 1e6)
            return free - now()

        self.rule = rule


class End:
    """One echo's line into the network."""

    def __init__(self, between: Between, side: int) -> None:
        self.closed = False
        self._between = between
        self._side = side

    def put(self, datagram: bytes) -> bool:
        if not self.closed:
            self._between.carry(self._side, datagram)
        return not self.closed

    async def put_many(self, datagram: bytes, count: int) -> bool:
        for _ in range(count):
            self.put(datagram)
        return True

    def close(self) -> None:
        self.closed = True
