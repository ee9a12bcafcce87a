# SPDX-License-Identifier: GPL-2.0-or-later
"""Watching a path: when it counts as dead, what follows, and what is no death."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from migrator.base.clock import now
from tests.tunnel.between import Between
from tests.tunnel.clock import pass_time, simulated
from tunnel.health import path_health
from tunnel.health.path_health import Watch
from tunnel.tunnel_errors import TunnelSilent


class Healer:
    """Counts deaths; `heal` is what it does about one."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.at: list[float] = []
        self.heal: Callable[[], Coroutine[Any, Any, None]] | None = None

    async def __call__(self, reason: str) -> None:
        self.reasons.append(reason)
        self.at.append(now())
        if self.heal:
            await self.heal()


@simulated
async def test_a_dead_path_is_noticed_after_a_second_from_both_sides() -> None:
    between, healers = Between(), [Healer(), Healer()]
    watches = [Watch(each, healer) for each, healer in zip(between.echoes, healers, strict=True)]
    tasks = [asyncio.ensure_future(watch.run()) for watch in watches]
    await asyncio.sleep(1.5)
    assert [healer.reasons for healer in healers] == [[], []]
    assert watches[0].quality().loss == 0.0 and watches[0].silent < 0.5
    cut = now()
    between.rule = lambda size, side: None if side == 0 else 0.0  # one direction is enough
    await asyncio.sleep(3)
    for healer in healers:
        (died,) = healer.at[:1]
        # An echo was due at most an interval before the cut; then a second, and the echo after that.
        assert (path_health.DEAD_AFTER - path_health.INTERVAL <= died - cut
                <= path_health.DEAD_AFTER + path_health.INTERVAL)
        assert healer.reasons[0].startswith("no echo for 1.")
    for task in tasks:
        task.cancel()


@simulated
async def test_a_path_that_is_healed_goes_on() -> None:
    between = Between()
    one, _ = between.echoes
    healer = Healer()
    watch = Watch(one, healer, interval=0.05, limit=0.3)

    async def heal() -> None:
        assert not await watch.back(0.1)
        between.rule = lambda size, side: 0.0
        assert await watch.back(1.0)

    healer.heal = heal
    task = asyncio.ensure_future(watch.run())
    await asyncio.sleep(0.2)
    between.cut()
    await asyncio.sleep(1.2)
    assert watch.deaths == len(healer.reasons) == 1 and not task.done()
    assert watch.quality().loss > 0.1
    task.cancel()


@simulated
async def test_a_path_that_cannot_be_healed_ends_the_watch() -> None:
    between = Between()
    one, _ = between.echoes
    async def give_up(reason: str) -> None:
        raise TunnelSilent(name="mig-00010203", reason=reason)

    between.cut()
    with pytest.raises(TunnelSilent, match="no echo for"):
        await Watch(one, give_up, interval=0.05, limit=0.2).run()


@simulated
async def test_losses_are_no_death() -> None:
    between = Between()
    one, _ = between.echoes
    count = 0

    def two_of_three(size: int, side: int) -> float | None:
        nonlocal count
        count += side == 0
        return 0.0 if side or count % 3 == 0 else None

    between.rule = two_of_three
    healer = Healer()
    task = asyncio.ensure_future(Watch(one, healer, interval=0.05, limit=0.3).run())
    await asyncio.sleep(1.5)
    assert not healer.reasons
    task.cancel()


@simulated
async def test_a_process_that_was_held_up_does_not_call_the_path_dead() -> None:
    between, healer = Between(), Healer()
    task = asyncio.ensure_future(Watch(between.echoes[0], healer, interval=0.05, limit=0.3).run())
    for _ in range(3):
        await asyncio.sleep(0.12)  # between two echoes: nothing lies unread that could speak for the path
        pass_time(0.6)
    await asyncio.sleep(0.1)
    assert not healer.reasons
    task.cancel()


@simulated
async def test_a_cancelled_watch_cancels_the_heal() -> None:
    between = Between()
    one, _ = between.echoes
    ended = asyncio.Event()

    async def for_ever(reason: str) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    between.cut()
    watch = Watch(one, for_ever, interval=0.05, limit=0.1)
    task = asyncio.ensure_future(watch.run())
    while not watch.deaths:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
