# SPDX-License-Identifier: GPL-2.0-or-later
"""How long something is still allowed, for decisions: by a clock that nobody sets, within one boot of this host.

The time of day (`time.time`) is for people: it is stepped by hand and by NTP, and begins anywhere where no battery
keeps it. CLOCK_BOOTTIME only runs on from the boot, also while the host sleeps (clock_gettime(2)); how fast, NTP has a
say in (see `leave.SLACK`).
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # random(4): another one after each boot


@dataclasses.dataclass(frozen=True)
class Moment:
    """When something is over, by `now` of one boot of this host."""

    boot: str
    until: float  # seconds since that boot
    lasts: float  # seconds that it has lasted then


def now() -> float:
    """Seconds since this host was started, also those in which it slept."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def until(end: float, lasts: float) -> Moment:
    """The moment `end`, by `now`; what ends then `lasts` so many seconds."""
    return Moment(BOOT_ID.read_text().strip(), end, lasts)


def left(moment: Moment | None) -> float | None:
    """Seconds to a moment, never less than 0; None where it is of another boot of this host."""
    if moment is None or moment.boot != BOOT_ID.read_text().strip():
        return None
    return max(0.0, moment.until - now())
