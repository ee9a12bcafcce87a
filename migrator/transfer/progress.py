# SPDX-License-Identifier: GPL-2.0-or-later
"""Progress of a transfer: a line with rate and time left on a terminal, JSON lines with --json, and for `status`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from migrator.base import log, printable
from migrator.base.figures import duration, size
from migrator.record import container_lock

EVERY_TERMINAL = 0.2  # seconds between two updates
EVERY_JSON = 1.0


class Progress:
    """Shown while its block runs. `total` is in bytes; 0 if unknown."""

    def __init__(self, what: str, total: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self._what = what
        self._total = total
        self._clock = clock
        self._begun = self._shown_at = clock()
        self._terminal = sys.stderr.isatty() and not log.as_json and log.level >= log.Level.NORMAL
        self._drawn = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        container_lock.publish_end()
        if self._drawn:
            log.write("\r\033[K")

    def update(self, done: int, resumed: int = 0) -> None:
        """`done` bytes are there so far, `resumed` of them from an earlier attempt: the rate is that of the others."""
        now = self._clock()
        if now - self._shown_at < (EVERY_JSON if log.as_json else EVERY_TERMINAL):
            return
        self._shown_at = now
        container_lock.publish(self._what, done, self._total)
        rate = max(0, done - resumed) / (now - self._begun)
        left = (self._total - done) / rate if rate and self._total > done else None
        if log.as_json:
            log.say("progress", self._what, bytes=done, total=self._total or None, bytes_per_second=round(rate),
                    seconds_left=round(left, 1) if left is not None else None)
        elif self._terminal:
            self._drawn = True
            shown = printable.line(line(self._what, done, self._total, rate, left))
            log.write(f"\r\033[K{printable.encodable(shown, sys.stderr)}")


def line(what: str, done: int, total: int, rate: float, left: float | None) -> str:
    """The line as shown on a terminal."""
    text = f"{what}: {size(done)}"
    if total:
        text += f" of about {size(total)} ({min(99, done * 100 // total)} %)"
    text += f", {size(rate)}/s"
    return text + (f", {duration(left)} left" if left is not None else "")
