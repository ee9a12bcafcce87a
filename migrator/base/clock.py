# SPDX-License-Identifier: GPL-2.0-or-later
"""Who tells the time: never the system by itself, always somebody whom a test can take the place of.

What runs in an event loop asks `now`, the clock that the loop's own timers go by: with a loop that has another clock,
sleeps, limits and measurements all follow that. What runs outside of one takes a `Clock`, by default time.monotonic.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

Clock = Callable[[], float]  # seconds, counted from wherever it likes


def now() -> float:
    """Seconds by the clock of the running event loop."""
    return asyncio.get_running_loop().time()
