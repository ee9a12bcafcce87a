# SPDX-License-Identifier: GPL-2.0-or-later
"""No core dump of a program that has keys in memory.

Not by resource limits (RLIMIT_CORE, LimitCORE= of a unit): a container that it starts would inherit them.
"""

from __future__ import annotations

_PR_SET_DUMPABLE = 4  # <linux/prctl.h>


def of_this() -> None:
    """Keep the kernel from dumping this process: PR_SET_DUMPABLE in prctl(2).

    Programs that it executes are not affected.
    """
    import ctypes

    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_DUMPABLE, ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))
