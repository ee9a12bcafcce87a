# SPDX-License-Identifier: GPL-2.0-or-later
"""How much a host sends to whatever a rendezvous calls a reflector (docs/tunnel.md has the numbers)."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from tests.tunnel.clock import simulated
from tunnel.candidates import gathering, hops, reflection
from tunnel.signalling import link

SILENT, LATE = ("192.0.2.1", 7000), ("192.0.2.2", 7000)


class Sender:
    """What is sent, to whom; LATE answers after `late` seconds, with 0 never."""

    def __init__(self, late: float) -> None:
        self.late = late
        self.sent: Counter[Any] = Counter()
        self.receiver: Any = None

    def port(self, via: int = 0) -> int:
        return 50000

    def send(self, via: int, to: Any, data: bytes, ttl: int | None = None) -> bool:
        self.sent[to] += 1
        if to == LATE and self.sent[to] == 1 and self.late:
            answer = reflection.answer(reflection.asked(data) or b"", "198.51.100.1", 50000)
            asyncio.get_running_loop().call_later(self.late, lambda: self.receiver and self.receiver(0, LATE, answer))
        return True


@pytest.mark.parametrize(("late", "asked"), [(0.0, 8), (0.01, 2), (0.75, 9), (0.799, 10), (0.9, 8)])
def test_what_one_that_is_silent_gets(late: float, asked: int) -> None:
    sender: Any = Sender(late)

    @simulated
    async def test() -> None:
        await gathering._observe(sender, [SILENT, LATE], gathering.TIMEOUT)

    test()
    assert max(sender.sent.values()) == sender.sent[SILENT] == asked


def test_the_numbers_of_the_documentation() -> None:
    assert (link.REFLECTORS_MAX, hops.FARTHEST) == (8, 6)
