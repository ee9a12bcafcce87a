# SPDX-License-Identifier: GPL-2.0-or-later
"""A file that is read and sent while a program is still writing it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

POLL = 0.002  # seconds


class Growing:
    """Reads a file that only grows, up to its end once `is_complete` says so. Use it as a context manager."""

    def __init__(self, path: Path, is_complete: Callable[[], bool]) -> None:
        self._file = path.open("rb", buffering=0)
        self._is_complete = is_complete

    def __enter__(self) -> Growing:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def readinto(self, buffer: memoryview) -> int:
        """Fill some of `buffer`, waiting for more if there is none yet; 0 at the end."""
        while True:
            complete = self._is_complete()  # first: nothing is written after that
            count = self._file.readinto(buffer)
            if count or complete:
                return int(count or 0)
            time.sleep(POLL)
