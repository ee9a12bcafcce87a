# SPDX-License-Identifier: GPL-2.0-or-later
"""What has limits of some seconds by nature, a punch or a healing say, counts only while nothing stands still."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

STILL = 1.0  # seconds: a fifth of the shortest limit that a tunnel has
EVERY = 0.05

T = TypeVar("T")


class _Watcher:
    """A thread that notices when it could not run for a while: so could nobody else, on this machine."""

    def __init__(self) -> None:
        self.longest = 0.0  # seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        last = time.monotonic()
        while not self._ended.wait(EVERY):
            now = time.monotonic()
            self.longest = max(self.longest, now - last)
            last = now

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._ended.set()
            self._thread.join()


def undisturbed(attempt: Callable[[], T]) -> T:
    """The outcome of an attempt, its failure too, once one was made while nothing stood still."""
    for _ in range(20):
        watcher = _Watcher()
        try:
            with watcher.watching():
                found = attempt()
        except AssertionError:
            if watcher.longest < STILL:
                raise
        else:
            if watcher.longest < STILL:
                return found
    raise AssertionError("the machine stands still again and again")
