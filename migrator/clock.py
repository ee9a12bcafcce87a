# SPDX-License-Identifier: GPL-2.0-or-later
"""How long ago something was, for decisions: by a clock that nobody sets, within one boot of this host.

The time of day (`time.time`) is for people: it is stepped by hand and by NTP, and begins anywhere where no battery
keeps it. CLOCK_BOOTTIME runs evenly from the boot on, also while the host sleeps (clock_gettime(2)).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # random(4): another one after each boot


def stamp() -> dict[str, Any]:
    """This moment, as a record keeps it."""
    return {"boot": BOOT_ID.read_text().strip(), "seconds": time.clock_gettime(time.CLOCK_BOOTTIME)}


def age(stamped: object) -> float | None:
    """Seconds since a `stamp`; None where it was made in an earlier boot of this host, or is none."""
    if not isinstance(stamped, dict) or stamped.get("boot") != BOOT_ID.read_text().strip():
        return None
    return time.clock_gettime(time.CLOCK_BOOTTIME) - float(stamped["seconds"])
