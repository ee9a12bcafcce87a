# SPDX-License-Identifier: GPL-2.0-or-later
"""How long something is still permitted: by a clock that nobody sets, within one boot of this host.

The time of day (`time.time`) is for people: it is stepped by hand and by NTP, and starts anywhere if no battery keeps
it. CLOCK_BOOTTIME only advances from the boot on, also while the host sleeps (clock_gettime(2)); NTP does affect its
rate (see `leave.SLACK`).
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # random(4): different after each boot


@dataclasses.dataclass(frozen=True)
class Moment:
    """The end of a span of time, by `now` of one boot of this host."""

    boot: str
    until: float  # seconds since that boot
    lasts: float  # the length of that span, in seconds


def now() -> float:
    """Seconds since this host was booted, including those in which it slept."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def until(end: float, lasts: float) -> Moment:
    """The moment `end`, by `now`, of a span that `lasts` that many seconds."""
    return Moment(BOOT_ID.read_text().strip(), end, lasts)


def left(moment: Moment | None) -> float | None:
    """Seconds until a moment, never less than 0; None if it belongs to another boot of this host."""
    if moment is None or moment.boot != BOOT_ID.read_text().strip():
        return None
    return max(0.0, moment.until - now())
