# SPDX-License-Identifier: GPL-2.0-or-later
"""Event loops with a clock of the test's own: however long this process or the machine stands still, no limit passes.

`simulated` is for what happens in this process alone: the clock jumps to the next timer once there is nothing left to
do, so that all of it takes no time, and the same time each time. `standing` is for sockets, which may take as long as
they will: the clock stands still, and only `pass_time` moves it.
"""

from __future__ import annotations

import asyncio
import functools
import math
import selectors
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, ParamSpec, TypeVar

QUIET = 60.0  # seconds of the machine's, twice, without anything at all: then a test hangs
LOOK = 0.002  # seconds of the machine's between two looks at a condition


class _Selector(selectors.DefaultSelector):
    """Where a loop waits, and so where time passes."""

    loop: Loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout <= 0:
            return super().select(timeout)
        if self.loop.jumps and timeout is not None and not self.loop.working:
            found = super().select(0)
            if not found:
                self.loop.pass_time(timeout)
            return found
        for _ in range(2):  # a process that was stopped finds its time used up when it goes on
            if found := super().select(QUIET):
                return found
        self.loop.give_up()
        return []


class Loop(asyncio.SelectorEventLoop):
    """An event loop whose clock is `now`."""

    def __init__(self, *, jumps: bool) -> None:
        self.now = 1000.0
        self.jumps = jumps
        self.working = 0  # functions in threads, which take as long as they will
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)
        self.pass_time(0.0)

    def time(self) -> float:
        return self.now

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        # How much too early a timer may be. By asyncio's own figure, a nanosecond, a wait for what is left of a time
        # that was not quite over would end at once, and nothing else moves this clock on.
        self._clock_resolution = math.ulp(self.now)

    def run_in_executor(self, executor: Executor | None, func: Callable[..., Any],  # type: ignore[override]
                        *args: Any) -> asyncio.Future[Any]:
        def ended(_: object) -> None:
            self.working -= 1

        self.working += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(ended)
        return future

    def give_up(self) -> None:
        """Whoever waits for something is shown with what it waits for."""
        for task in asyncio.all_tasks(self):
            task.cancel(f"nothing has happened for {2 * QUIET:.0f} s")


P = ParamSpec("P")
T = TypeVar("T")
Test = Callable[P, Coroutine[Any, Any, None]]


def simulated(test: Test[P]) -> Callable[P, None]:
    """A test that is a coroutine, by a clock that jumps over every wait."""
    return _in_loop(test, jumps=True)


def standing(test: Test[P]) -> Callable[P, None]:
    """A test that is a coroutine, by a clock that stands still."""
    return _in_loop(test, jumps=False)


def _in_loop(test: Test[P], *, jumps: bool) -> Callable[P, None]:
    @functools.wraps(test)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        with asyncio.Runner(loop_factory=lambda: Loop(jumps=jumps)) as runner:
            runner.run(test(*args, **kwargs))

    return wrapper


def pass_time(seconds: float) -> None:
    """Move the running loop's clock on: in `standing` as time goes by, in `simulated` as if this had been held up."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, Loop)
    loop.pass_time(seconds)


async def look() -> None:
    """A moment of the machine's time, in which this loop's may stand still."""
    loop = asyncio.get_running_loop()
    standing = isinstance(loop, Loop) and not loop.jumps
    await (asyncio.to_thread(time.sleep, LOOK) if standing else asyncio.sleep(LOOK))


async def eventually(condition: Callable[[], object]) -> None:
    """Wait, however long it takes, until that is so."""
    for _ in range(round(2 * QUIET / LOOK)):
        if condition():
            return
        await look()
    raise AssertionError("it never came about")


async def as_time_goes_by(work: Awaitable[T], step: float = 0.1) -> T:
    """Do it while the clock runs, and runs fast: for what waits for limits that its outcome does not depend on."""
    task = asyncio.ensure_future(work)
    while not task.done():
        pass_time(step)
        await look()
    return await task
