# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the time comes from: never from the system directly, so that a test can always substitute it.

Code in an event loop calls `now`, the clock that the loop's own timers use: with a loop that has another clock, sleeps,
limits and measurements all follow it. Code outside of one takes a `Clock`, by default time.monotonic.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

Clock = Callable[[], float]  # seconds, from an arbitrary start


def now() -> float:
    """Seconds by the clock of the running event loop."""
    return asyncio.get_running_loop().time()
