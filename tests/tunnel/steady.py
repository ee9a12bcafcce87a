# SPDX-License-Identifier: GPL-2.0-or-later
"""An event loop that does not see when the machine stands still: of such a pause only a moment counts.

Client, server and network of these tests are one process, so a pause holds up all of them; without this their time
limits would run out meanwhile.
"""

from __future__ import annotations

import asyncio
import selectors
import threading
import time
from collections.abc import Coroutine
from typing import Any

import pytest

TICK = 0.01  # seconds between two looks at the clock while nothing happens
MOST = 0.05  # seconds that count between two looks


class Clock:
    """Takes the place of time.monotonic, for all threads."""

    def __init__(self) -> None:
        self._real = time.monotonic
        self._lock = threading.Lock()
        self._last = self._now = self._real()

    def __call__(self) -> float:
        with self._lock:
            real = self._real()
            self._now += min(real - self._last, MOST)
            self._last = real
            return self._now


class Selector(selectors.DefaultSelector):
    """Looks up often enough for the clock to go on."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return super().select(TICK if timeout is None else min(timeout, TICK))


def run(work: Coroutine[Any, Any, None], limit: float) -> None:
    """asyncio.run by that clock, with a limit in seconds."""

    async def limited() -> None:
        async with asyncio.timeout(limit):
            await work

    with (
        pytest.MonkeyPatch.context() as patch,
        asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(Selector())) as runner,
    ):
        patch.setattr(time, "monotonic", Clock())
        runner.run(limited())
