# SPDX-License-Identifier: GPL-2.0-or-later
"""What a thread of this process is doing: to interrupt one that waits, it has to wait already.

A signal that comes a moment before is only noticed when the wait is over (signal(7); Python's own handlers run later).
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

EVERY = 0.02  # seconds


def functions(thread: threading.Thread) -> set[str]:
    """The names of the functions that a thread is in."""
    frame = sys._current_frames().get(thread.ident or 0)
    found = set()
    while frame:
        found.add(frame.f_code.co_name)
        frame = frame.f_back
    return found


def until_waits(thread: threading.Thread, *inside: str) -> None:
    """Wait until a thread is in these functions, and sleeps in the kernel without waking up in between.

    Who waits for Python's lock wakes up every few milliseconds.
    """
    before = ""
    while True:
        now = _sleep(thread) if set(inside) <= functions(thread) else ""
        if now and now == before:
            return
        before = now
        time.sleep(EVERY)


def _sleep(thread: threading.Thread) -> str:
    """How often it has gone to sleep (proc_pid_status(5)), if that is what it does; else nothing."""
    status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
    words = dict(line.split(":", 1) for line in status.splitlines())
    return words["voluntary_ctxt_switches"] if words["State"].split()[0] == "S" else ""
