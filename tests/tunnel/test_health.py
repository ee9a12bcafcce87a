# SPDX-License-Identifier: GPL-2.0-or-later
"""Echo and path health on loopback sockets, with a network in between that loses, holds back and cuts."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import statistics
import struct
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tunnel import steady
from tunnel import echo as echo_module
from tunnel import health, mtu
from tunnel.echo import ASK, HEADER, LOAD, MAGIC, UDP_HEADERS, Echo
from tunnel.errors import TunnelSilent
from tunnel.health import Quality, Watch, measure, quality, stable
from tunnel.interface import Interface
from tunnel.wireguard.base import Stats

LOOPBACK = "::1"


def run(work: Coroutine[Any, Any, None]) -> None:
    """A test with a limit of its own."""
    steady.run(work, 20)


class Between:
    """The network between two echoes: what one sends arrives at the other as `rule` decides, given size and side.

    `rule` returns seconds of delay, None to lose it.
    """

    def __init__(self) -> None:
        self.rule: Callable[[int, int], float | None] = lambda size, side: 0.0
        self.ends: list[socket.socket] = []
        self.hosts: list[int] = [0, 0]  # ports
        for _ in range(2):
            end = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            end.bind((LOOPBACK, 0))
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            self.ends.append(end)

    def port(self, side: int) -> int:
        """Where the echo of that side sends to."""
        port: int = self.ends[side].getsockname()[1]
        return port

    def start(self) -> None:
        for side in (0, 1):
            asyncio.get_running_loop().add_reader(self.ends[side], self._pass_on, side)

    def _pass_on(self, side: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                data = self.ends[side].recv(65536)
                delay = self.rule(len(data), side)
                if delay is not None:
                    asyncio.get_running_loop().call_later(delay, self._put, data, side)

    def _put(self, data: bytes, side: int) -> None:
        with contextlib.suppress(OSError):
            self.ends[1 - side].sendto(data, (LOOPBACK, self.hosts[1 - side]))

    def stop(self) -> None:
        for end in self.ends:
            asyncio.get_running_loop().remove_reader(end)
            end.close()


@contextlib.asynccontextmanager
async def echoes() -> AsyncIterator[tuple[Echo, Echo, Between]]:
    """Two echoes with a network between them."""
    between = Between()
    between.start()
    both = [Echo.open(LOOPBACK, LOOPBACK, 0, remote_port=between.port(side)) for side in (0, 1)]
    between.hosts = [each.port for each in both]
    try:
        yield both[0], both[1], between
    finally:
        for each in both:
            each.close()
            each.close()
        between.stop()


# --- Echo ---


def test_an_echo_comes_back_small_both_ways() -> None:
    async def work() -> None:
        async with echoes() as (one, two, between):
            sizes: set[tuple[int, int]] = set()

            def note(size: int, side: int) -> float:
                sizes.add((side, size))
                return 0.05

            between.rule = note
            for asking, size in ((one, HEADER.size), (two, 1232), (one, 1372)):
                took = await asking.ask(size=size)
                assert took is not None and 0.1 <= took < 0.5
            assert sizes == {(0, HEADER.size), (1, HEADER.size), (1, 1232), (0, 1372)}

    run(work())


def test_no_answer() -> None:
    async def work() -> None:
        async with echoes() as (one, _, between):
            between.rule = lambda size, side: None
            assert await one.ask(timeout=0.1) is None
            between.rule = lambda size, side: 0.3  # one that comes too late is no surprise
            assert await one.ask(timeout=0.1) is None
            await asyncio.sleep(0.6)
            one.close()
            assert await one.ask(timeout=0.1) is None
            assert not one.send(lambda _: None)

    run(work())


def test_a_hundred_at_once() -> None:
    async def work() -> None:
        async with echoes() as (one, _, _between):
            found = await asyncio.gather(*(one.ask() for _ in range(100)))
            assert None not in found

    run(work())


def test_questions_that_wait_are_bounded() -> None:
    async def work() -> None:
        async with echoes() as (one, _, between):
            between.rule = lambda size, side: None
            for _ in range(3 * echo_module.WAITING_MAX):
                one.send(lambda _: None)
            assert len(one._waiting) <= echo_module.WAITING_MAX

    run(work())


def test_answers_to_no_question_and_from_strangers_count_for_nothing() -> None:
    async def work() -> None:
        async with echoes() as (one, _, between):
            between.rule = lambda size, side: None
            asked = asyncio.ensure_future(one.ask(timeout=0.5))
            await asyncio.sleep(0.05)
            (number,) = one._waiting
            answer = HEADER.pack(MAGIC, echo_module.ANSWER, number)
            with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as stranger:  # who has even guessed the number
                stranger.sendto(answer, (LOOPBACK, one.port))
            guess = HEADER.pack(MAGIC, echo_module.ANSWER, number ^ 1)
            between.ends[0].sendto(guess, (LOOPBACK, one.port))
            assert await asked is None and one.heard == 0.0

    run(work())


datagrams = st.one_of(
    st.binary(max_size=100),
    st.builds(lambda kind, number, body: HEADER.pack(MAGIC, kind, number) + body,
              st.integers(0, 255), st.sampled_from([0, 1, 2**64 - 1]), st.binary(max_size=64)),
)  # fmt: skip


@given(st.lists(st.tuples(datagrams, st.integers(0, 1 << 62)), max_size=20))
def test_any_datagram_is_answered_within_its_size_or_passed_over(received: list[tuple[bytes, int]]) -> None:
    async def work() -> None:
        one = Echo.open(LOOPBACK, LOOPBACK, 0, remote_port=9)
        sent: list[bytes] = []
        one._put = lambda kind, number, body=b"": sent.append(HEADER.pack(MAGIC, kind, number) + body) or True  # type: ignore[func-returns-value,method-assign]
        for data, arrived in received:
            sent.clear()
            one._take(data, arrived)
            assert len(sent) <= 1
            assert all(len(answer) <= max(len(data), 36) for answer in sent)
        one.close()

    asyncio.run(work())


# --- Quality ---


def test_quality_of_round_trips() -> None:
    assert quality([]) == Quality(None, 0.0, 0.0)
    assert quality([None, None]) == Quality(None, 1.0, 0.0, None, 2)
    found = quality([0.010, 0.030, None, 0.020], 5.0)
    assert found.rtt_ms == pytest.approx(20.0) and found.jitter == pytest.approx(15.0)
    assert (found.loss, found.mbit_s, found.echoes) == (0.25, 5.0, 4)
    assert found.to_json()["rtt_ms"] == found.rtt_ms


@pytest.mark.parametrize(("found", "good", "reason"), [
    (Quality(20.0, 0.0, 1.0, 90.0, 20), True, "round trip 20.0 ms, loss 0%, 90 Mbit/s"),
    (Quality(20.0, 0.0, 1.0, None, 20), True, "round trip 20.0 ms, loss 0%"),
    (Quality(20.0, 0.05, 1.0, None, 20), True, "round trip 20.0 ms, loss 5%"),
    (Quality(None, 1.0, 0.0, None, 20), False, "none of 20 echoes came back"),
    (Quality(20.0, 0.10, 1.0, 90.0, 20), False, "10% of 20 echoes were lost, 5% may be"),
    (Quality(1500.0, 0.0, 1.0, 90.0, 20), False, "a round trip takes 1500 ms, 1000 ms is the most"),
    (Quality(20.0, 0.0, 150.0, 90.0, 20), False, "round trips differ by 150 ms, 100 ms is the most"),
    (Quality(20.0, 0.0, 1.0, 0.25, 20), False, "it carries 0.25 Mbit/s, 1 is the least"),
])  # fmt: skip
def test_stable(found: Quality, good: bool, reason: str) -> None:
    assert stable(found) == (good, reason)


def test_measuring_a_good_path() -> None:
    async def work() -> None:
        async with echoes() as (one, _, between):
            between.rule = lambda size, side: 0.01
            found = await measure(one)
            assert found.rtt_ms is not None and 20 <= found.rtt_ms < 60
            assert found.loss == 0.0 and found.echoes == health.ECHOES
            assert found.mbit_s is not None and found.mbit_s > 1
            assert stable(found)[0]

    run(work())


def test_measuring_a_path_that_loses() -> None:
    async def work() -> None:
        async with echoes() as (one, _, between):
            count = 0

            def every_fourth(size: int, side: int) -> float | None:
                nonlocal count
                count += side == 0
                return None if side == 0 and count % 4 == 0 else 0.0

            between.rule = every_fourth
            found = await measure(one, timeout=0.2, throughput=False)
            assert found.loss == pytest.approx(0.25)
            assert not stable(found)[0]
            between.rule = lambda size, side: None
            found = await measure(one, timeout=0.2)
            assert (found.rtt_ms, found.loss, found.mbit_s) == (None, 1.0, None)

    run(work())


def test_the_rate_of_a_narrow_path() -> None:
    async def work() -> None:
        async with echoes() as (one, _, between):
            free = 0.0

            def narrow(size: int, side: int) -> float | None:
                """20 Mbit/s with room for a tenth of a second; a call may carry many datagrams, but not here."""
                nonlocal free
                now = time.monotonic()
                if side == 1:
                    return 0.0
                if free - now > 0.1:
                    return None
                free = max(free, now) + size * 8 / 20e6
                return free - now

            between.rule = narrow
            # The median: what the kernel notes of the arrival of each is a pause of the machine, too.
            found = [await health.rate(one) or 0.0 for _ in range(5)]
            assert statistics.median(found) == pytest.approx(20, rel=0.4)

    run(work())


def test_a_train_that_is_lost_as_a_whole() -> None:
    async def work() -> None:
        async with echoes() as (one, two, between):
            between.rule = lambda size, side: None if size > 100 else 0.0
            assert await health.rate(one) is None
            between.rule = lambda size, side: None
            assert await one.load(10_000, size=1000, timeout=0.2) is None
            two._take(HEADER.pack(MAGIC, LOAD, 5), 10)
            two._take(HEADER.pack(MAGIC, LOAD, 5) + bytes(84), 2_000_000_010)
            assert (two._train.datagrams, two._train.bytes) == (2, 2 * HEADER.size + 84)

    run(work())


# --- The tunnel as a whole ---


@dataclasses.dataclass
class FakeInterface:
    """What health needs of an interface."""

    name: str = "mig-00010203"
    mtu: int = mtu.MAX
    shaking: bool = True
    kind: str = "userspace"
    role: str = "initiator"

    @property
    def backend(self) -> FakeInterface:
        return self

    async def stats(self) -> Stats:
        return Stats(time.time() if self.shaking else 0.0, 0, 0, None)

    async def shaken(self, limit: float) -> bool:
        await asyncio.sleep(0.0 if self.shaking else limit)
        return self.shaking

    async def set_mtu(self, size: int) -> None:
        self.mtu = size


def fake(**settings: Any) -> Interface:
    return cast(Interface, FakeInterface(**settings))


def test_the_first_answer() -> None:
    async def work() -> None:
        async with echoes() as (one, _, between):
            between.rule = lambda size, side: None
            asyncio.get_running_loop().call_later(0.2, setattr, between, "rule", lambda size, side: 0.01)
            begun = time.monotonic()
            assert await health.first_answer(fake(), one) < 0.2
            assert 0.2 <= time.monotonic() - begun < 0.6
            between.rule = lambda size, side: None
            with pytest.raises(TunnelSilent, match="handshake succeeded, but no echo"):
                await health.first_answer(fake(), one, limit=0.1)
            with pytest.raises(TunnelSilent, match="got no handshake"):
                await health.first_answer(fake(shaking=False), one, limit=0.1)
            with pytest.raises(TunnelSilent, match="got no handshake"):
                await health.first_answer(fake(shaking=False, role="responder"), one, limit=0.2)

    run(work())


@pytest.mark.parametrize(("most", "found"), [(9000, 1420), (1412, 1408), (1399, 1392), (1300, 1296), (1200, 1280)])
def test_the_mtu_of_a_path_that_swallows_what_is_too_big(most: int, found: int) -> None:
    async def work() -> None:
        async with echoes() as (one, _, between):
            between.rule = lambda size, side: 0.0 if size + UDP_HEADERS <= most else None
            interface = fake()
            assert await health.tune(interface, one, ("127.0.0.1", 9)) == found == interface.mtu

    run(work())


def test_the_mtu_when_this_process_is_held_up() -> None:
    """For longer than large echoes are waited for: what came back meanwhile counts."""

    async def work() -> None:
        async with echoes() as (one, _, between):
            held_up: list[int] = []

            def hold_up(size: int, side: int) -> float:
                if size > 100 and not held_up:
                    held_up.append(size)
                    time.sleep(1.5)
                return 0.0

            between.rule = hold_up
            assert await health.tune(fake(mtu=1280), one, ("127.0.0.1", 9)) == mtu.MAX
            assert held_up

    run(work())


def test_the_mtu_of_a_path_that_loses_now_and_then() -> None:
    async def work() -> None:
        async with echoes() as (one, _, between):
            seen: dict[int, int] = {}

            def first_is_lost(size: int, side: int) -> float | None:
                seen[size] = seen.get(size, 0) + 1
                return None if seen[size] == 1 and size > 100 else 0.0

            between.rule = first_is_lost
            assert await health.tune(fake(mtu=1280), one, ("127.0.0.1", 9)) == mtu.MAX

    run(work())


# --- Watching ---


class Healer:
    """Counts deaths; `heal` is what it does about one."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.at: list[float] = []
        self.heal: Callable[[], Coroutine[Any, Any, None]] | None = None

    async def __call__(self, reason: str) -> None:
        self.reasons.append(reason)
        self.at.append(time.monotonic())
        if self.heal:
            await self.heal()


def test_a_dead_path_is_noticed_within_about_a_second_from_both_sides() -> None:
    async def work() -> None:
        async with echoes() as (one, two, between):
            healers = [Healer(), Healer()]
            watches = [Watch(each, healer) for each, healer in zip((one, two), healers, strict=True)]
            tasks = [asyncio.ensure_future(watch.run()) for watch in watches]
            await asyncio.sleep(1.5)
            assert [healer.reasons for healer in healers] == [[], []]
            assert watches[0].quality().loss == 0.0 and watches[0].silent < 0.5
            cut = time.monotonic()
            between.rule = lambda size, side: None if side == 0 else 0.0  # one direction is enough
            while not all(healer.at for healer in healers):
                await asyncio.sleep(0.01)
            for healer in healers:
                assert 0.6 < healer.at[0] - cut < 1.7
                assert healer.reasons[0].startswith("no echo for 1.")
            for task in tasks:
                task.cancel()

    run(work())


def test_a_path_that_is_healed_goes_on() -> None:
    async def work() -> None:
        async with echoes() as (one, _, between):
            healer = Healer()
            watch = Watch(one, healer, interval=0.05, limit=0.3)

            async def heal() -> None:
                assert not await watch.back(0.1)
                between.rule = lambda size, side: 0.0
                assert await watch.back(1.0)

            healer.heal = heal
            task = asyncio.ensure_future(watch.run())
            await asyncio.sleep(0.2)
            between.rule = lambda size, side: None
            await asyncio.sleep(1.2)
            assert watch.deaths == len(healer.reasons) == 1 and not task.done()
            assert watch.quality().loss > 0.1
            task.cancel()

    run(work())


def test_a_path_that_cannot_be_healed_ends_the_watch() -> None:
    async def work() -> None:
        async with echoes() as (one, _, between):
            async def give_up(reason: str) -> None:
                raise TunnelSilent(name="mig-00010203", reason=reason)

            between.rule = lambda size, side: None
            with pytest.raises(TunnelSilent, match="no echo for"):
                await Watch(one, give_up, interval=0.05, limit=0.2).run()

    run(work())


def test_losses_are_no_death() -> None:
    async def work() -> None:
        async with echoes() as (one, _, between):
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

    run(work())


def test_a_process_that_was_held_up_does_not_call_the_path_dead() -> None:
    async def work() -> None:
        async with echoes() as (one, _, _between):
            healer = Healer()
            task = asyncio.ensure_future(Watch(one, healer, interval=0.05, limit=0.3).run())
            for _ in range(3):
                await asyncio.sleep(0.1)
                time.sleep(0.6)
            await asyncio.sleep(0.1)
            assert not healer.reasons
            task.cancel()

    asyncio.run(work())  # by a clock that sees it


def test_a_cancelled_watch_cancels_the_heal() -> None:
    async def work() -> None:
        async with echoes() as (one, _, between):
            ended = asyncio.Event()

            async def for_ever(reason: str) -> None:
                try:
                    await asyncio.sleep(60)
                finally:
                    ended.set()

            between.rule = lambda size, side: None
            watch = Watch(one, for_ever, interval=0.05, limit=0.1)
            task = asyncio.ensure_future(watch.run())
            while not watch.deaths:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert ended.is_set()

    run(work())


def test_headers_are_as_documented() -> None:
    assert HEADER.pack(MAGIC, ASK, 1) == b"MGE1\x01\0\0\0" + struct.pack("!Q", 1)
