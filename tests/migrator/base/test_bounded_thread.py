# SPDX-License-Identifier: GPL-2.0-or-later
"""Work beside the thread that waits for it: no longer than it may, and what comes too late makes nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from migrator.base.bounded_thread import Beside
from migrator.errors.memory import DowntimeExceeded

LIMIT = 60.0  # seconds: ends what hangs, and promises nothing


class Clock:
    """Tells what is left, until it is told that there is nothing any more."""

    def __init__(self, left: float) -> None:
        self.left = left

    def __call__(self) -> float:
        if self.left <= 0:
            raise DowntimeExceeded(name="web", seconds="1")
        left, self.left = self.left, 0.0
        return left


@pytest.fixture
def hanging() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def test_what_hangs_is_not_waited_for(hanging: threading.Event) -> None:
    with Beside(Clock(0.01)) as beside, pytest.raises(DowntimeExceeded):
        beside.begin(hanging.wait)()


def test_what_comes_too_late_makes_nothing(hanging: threading.Event) -> None:
    made: list[object] = []

    def make() -> None:
        hanging.wait()
        with beside.making():
            made.append("a pair")

    with Beside(Clock(LIMIT)) as beside:
        wait = beside.begin(make)
    hanging.set()
    with pytest.raises(TimeoutError, match="nobody is waiting"):
        wait()
    assert not made


def test_the_end_waits_for_what_is_being_made(hanging: threading.Event) -> None:
    """Who cleans up afterwards finds all of it."""
    begun = threading.Event()
    made: list[str] = []

    def make() -> None:
        with beside.making():
            begun.set()
            hanging.wait()
            made.append("a pair")

    with Beside(Clock(LIMIT)) as beside:
        beside.begin(make)
        assert begun.wait(LIMIT)
        threading.Timer(0.01, hanging.set).start()
    assert made


def test_what_it_returns_or_raises_arrives() -> None:
    def fail() -> None:
        raise TimeoutError("of its own")

    with Beside(lambda: LIMIT) as beside:
        assert beside.begin(max, 1, 2)() == 2
        with pytest.raises(TimeoutError, match="of its own"):
            beside.begin(fail)()
