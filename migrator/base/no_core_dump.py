# SPDX-License-Identifier: GPL-2.0-or-later
"""No core dump of a program that has keys in its memory.

Not by its limits (RLIMIT_CORE, LimitCORE= of a unit): a container that it starts would have them too.
"""

from __future__ import annotations

_PR_SET_DUMPABLE = 4  # <linux/prctl.h>


def of_this() -> None:
    """The kernel writes none of this process: PR_SET_DUMPABLE in prctl(2). What it executes begins as ever."""
    import ctypes

    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_DUMPABLE, ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))
