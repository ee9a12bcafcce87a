# SPDX-License-Identifier: GPL-2.0-or-later
"""Echoes over a network that loses and holds back, and over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tunnel.between import Between
from tests.tunnel.clock import simulated, standing
from tunnel.health import echo as echo_module
from tunnel.health.echo import ANSWER, ASK, HEADER, LOAD, MAGIC, Echo
from tunnel.health.echo_socket import EchoSocket

LOOPBACK = "::1"


@simulated
async def test_an_echo_comes_back_small_both_ways() -> None:
    between, sizes = Between(), set()
    one, two = between.echoes

    def note(size: int, side: int) -> float:
        sizes.add((side, size))
        return 0.05

    between.rule = note
    for asking, size in ((one, HEADER.size), (two, 1232), (one, 1372)):
        assert await asking.ask(size=size) == pytest.approx(0.1, abs=1e-4)
    assert sizes == {(0, HEADER.size), (1, HEADER.size), (1, 1232), (0, 1372)}


@simulated
async def test_no_answer() -> None:
    between = Between()
    one, _ = between.echoes
    between.cut()
    assert await one.ask(timeout=0.1) is None
    between.rule = lambda size, side: 0.3  # one that comes too late is no surprise
    assert await one.ask(timeout=0.1) is None
    await asyncio.sleep(0.6)
    assert one.heard
    one.close()
    one.close()
    assert await one.ask(timeout=0.1) is None
    assert not one.send(lambda _: None)


@simulated
async def test_a_hundred_at_once() -> None:
    one, _ = Between().echoes
    assert None not in await asyncio.gather(*(one.ask() for _ in range(100)))


@simulated
async def test_questions_that_wait_are_bounded() -> None:
    between = Between()
    one, _ = between.echoes
    between.cut()
    for _ in range(3 * echo_module.WAITING_MAX):
        one.send(lambda _: None)
    assert len(one._waiting) <= echo_module.WAITING_MAX


@simulated
async def test_an_answer_to_no_question_counts_for_nothing() -> None:
    between = Between()
    one, _ = between.echoes
    between.cut()
    asked = asyncio.ensure_future(one.ask(timeout=0.5))
    await asyncio.sleep(0.05)
    (number,) = one._waiting
    between.arrive(0, HEADER.pack(MAGIC, ANSWER, number ^ 1))
    assert await asked is None and one.heard == 0.0


@simulated
async def test_a_train_that_is_lost_as_a_whole() -> None:
    between = Between()
    one, two = between.echoes
    between.cut()
    assert await one.load(10_000, size=1000, timeout=0.2) is None
    two.take(HEADER.pack(MAGIC, LOAD, 5), 10)
    two.take(HEADER.pack(MAGIC, LOAD, 5) + bytes(84), 2_000_000_010)
    assert (two._train.datagrams, two._train.bytes) == (2, 2 * HEADER.size + 84)


datagrams = st.one_of(
    st.binary(max_size=100),
    st.builds(lambda kind, number, body: HEADER.pack(MAGIC, kind, number) + body,
              st.integers(0, 255), st.sampled_from([0, 1, 2**64 - 1]), st.binary(max_size=64)),
)  # fmt: skip


class Kept:
    """A line that only keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def put(self, datagram: bytes) -> bool:
        self.sent.append(datagram)
        return True

    async def put_many(self, datagram: bytes, count: int) -> bool:
        raise AssertionError

    def close(self) -> None: ...


@given(st.lists(st.tuples(datagrams, st.integers(0, 1 << 62)), max_size=20))
def test_any_datagram_is_answered_within_its_size_or_passed_over(received: list[tuple[bytes, int]]) -> None:
    line = Kept()
    one = Echo(line)
    for data, arrived in received:
        line.sent.clear()
        one.take(data, arrived)
        assert len(line.sent) <= 1
        assert all(len(answer) <= max(len(data), 36) for answer in line.sent)


def test_headers_are_as_documented() -> None:
    assert HEADER.pack(MAGIC, ASK, 1) == b"MGE1\x01\0\0\0" + struct.pack("!Q", 1)


# --- Over sockets ---


@contextlib.contextmanager
def sockets() -> Iterator[tuple[EchoSocket, EchoSocket]]:
    """Two on the loopback interface, that send to each other."""
    one = EchoSocket(LOOPBACK, 0, (LOOPBACK, 9))
    two = EchoSocket(LOOPBACK, 0, (LOOPBACK, one.port))
    one._remote = (LOOPBACK, two.port)
    try:
        yield one, two
    finally:
        for each in (one, two):
            each.close()
            each.close()


def echo_over(line: EchoSocket) -> Echo:
    made = Echo(line)
    line.listen(made.take)
    return made


@standing
async def test_questions_and_answers_over_sockets() -> None:
    with sockets() as lines:
        one, two = map(echo_over, lines)
        for echo in (one, two):
            assert None not in await asyncio.gather(*(echo.ask(size=size) for size in (HEADER.size, 1232, 1372)))
        one.close()
        assert not one.send(lambda _: None)


@standing
async def test_a_train_over_sockets() -> None:
    """Its datagrams leave many a call, and arrive as they were."""
    with sockets() as lines:
        one, _two = map(echo_over, lines)
        arrived = await one.load(100_000, size=1000)
        assert arrived and (arrived.datagrams, arrived.bytes) == (100, 100_000)


@standing
async def test_who_is_not_the_peer_is_not_heard() -> None:
    """Not even a local user who has guessed the number of a question."""
    with sockets() as (line, peer):
        one = echo_over(line)
        asked = asyncio.ensure_future(one.ask())
        await asyncio.sleep(0)
        (number,) = one._waiting
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(HEADER.pack(MAGIC, ANSWER, number), (LOOPBACK, line.port))
        peer.put(HEADER.pack(MAGIC, ASK, 7))
        while HEADER.unpack(await asyncio.get_running_loop().sock_recv(peer._socket, 100))[1:] != (ANSWER, 7):
            pass
        # That one is answered, so what came before it has been looked at.
        assert one.heard == 0.0 and not asked.done()
        asked.cancel()
