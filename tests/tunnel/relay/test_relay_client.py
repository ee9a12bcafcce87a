# SPDX-License-Identifier: GPL-2.0-or-later
"""The relay on loopback: it forwards between its token's two ends and for nobody else, within its limits."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.effort import tries
from tests.tunnel.clock import eventually, standing
from tunnel import gso
from tunnel.candidates.nat import Endpoint
from tunnel.relay import relay_messages
from tunnel.relay.relay_client import Joining, RelayToken
from tunnel.relay.relay_proxy import TcpPath
from tunnel.rendezvous import tcp_relay
from tunnel.rendezvous.certificate import Certificate
from tunnel.rendezvous.pairs import Limits
from tunnel.rendezvous.udp_relay import Relay

A, B, C = b"a" * 32, b"b" * 32, b"c" * 32
SESSION = b"s" * 16


class Time:
    """What a relay takes for the time; it goes on only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@contextlib.asynccontextmanager
async def relaying(limits: Limits | None = None, clock: Time | None = None) -> AsyncIterator[Relay]:
    clock = clock or Time()
    tls = Certificate.load(None, None).relay_context
    relay = await Relay.serve("127.0.0.1", tls=tls, limits=limits, clock=clock, wall=clock)
    try:
        yield relay
    finally:
        await relay.close()


def token(relay: Relay, own: bytes = A, peer: bytes = B, session: bytes = SESSION) -> RelayToken:
    return RelayToken("127.0.0.1", relay.udp_port, relay.tcp_port, *relay.token(session, own, peer))


class End:
    """A UDP socket that can join."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.setblocking(False)

    def send(self, data: bytes, to: Endpoint) -> None:
        self.socket.sendto(data, to)

    async def receive(self) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.socket, 65536)

    def has_heard(self) -> list[bytes]:
        """What has come and was not received yet."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(self.socket.recv(65536))
        return found

    async def join(self, token: RelayToken) -> Joining:
        joining = Joining(token)
        while not joining.joined and not joining.refused:
            self.send(joining.datagram(0.0), token.udp)
            joining.received(await self.receive(), 0.0)
        return joining

    def close(self) -> None:
        self.socket.close()


@contextlib.contextmanager
def ends(count: int) -> Any:
    made = [End() for _ in range(count)]
    try:
        yield made
    finally:
        for end in made:
            end.close()


async def all_seen(relay: Relay) -> None:
    """Until the relay has dealt with what was sent to it by UDP before now: it takes one after another."""
    with ends(1) as (end,):
        ours = token(relay, b"x" * 32, b"y" * 32)
        end.send(Joining(ours).datagram(0.0), ours.udp)
        answer = relay_messages.parse_answer(await end.receive(), ours.key)
        assert answer and answer.type is relay_messages.Type.CHALLENGE  # and so it has kept nothing


@standing
async def test_forwards_between_two_ends() -> None:
    async with relaying() as relay:
        with ends(2) as (a, b):
            await a.join(token(relay, A, B))
            a.send(b"nobody is there yet", ("127.0.0.1", relay.udp_port))
            await b.join(token(relay, B, A))
            for n in range(20):
                a.send(b"%d" % n, ("127.0.0.1", relay.udp_port))
                assert await b.receive() == b"%d" % n
                b.send(b"-%d" % n, ("127.0.0.1", relay.udp_port))
                assert await a.receive() == b"-%d" % n
        assert relay.dropped == 1


@standing
async def test_present() -> None:
    async with relaying() as relay:
        with ends(2) as (a, b):
            tokens = token(relay, A, B), token(relay, B, A)
            await a.join(tokens[0])
            joining = Joining(tokens[1])
            b.send(joining.datagram(0.0), tokens[1].udp)
            joining.received(await b.receive(), 0.0)
            b.send(joining.datagram(0.0), tokens[1].udp)
            answer = joining.received(await b.receive(), 0.0)
            assert answer is not None
            assert answer.present


@standing
async def test_strangers_get_nothing() -> None:
    """Not in, not out, not an answer; nor who has a token for another session or with another peer."""
    async with relaying() as relay:
        with ends(5) as (a, b, stranger, other_session, other_peer):
            await a.join(token(relay, A, B))
            await b.join(token(relay, B, A))
            await other_session.join(token(relay, A, B, b"t" * 16))
            await other_peer.join(token(relay, C, A))
            for each in (stranger, other_session, other_peer):
                magic = relay_messages.MAGIC
                for data in (b"", b"x", b"\4" + bytes(31), magic, magic + bytes(97), os.urandom(1400)):
                    each.send(data, ("127.0.0.1", relay.udp_port))
            await all_seen(relay)
            a.send(b"still", ("127.0.0.1", relay.udp_port))
            assert await b.receive() == b"still"
            await all_seen(relay)
            assert not any(each.has_heard() for each in (a, b, stranger, other_session, other_peer))


@standing
async def test_tokens_are_bound() -> None:
    """A claim that was changed in any place, or came from another relay, is not even answered."""
    async with relaying() as relay, relaying() as other:
        with ends(1) as (a,):
            good = token(relay)
            claims = [bytes(c ^ (i == n) for i, c in enumerate(good.claim)) for n in range(0, len(good.claim), 7)]
            bad_ones = [dataclasses.replace(good, claim=each) for each in claims]
            bad_ones += [dataclasses.replace(good, key=b"x" * 32)]
            bad_ones += [dataclasses.replace(token(other), udp_port=good.udp_port)]
            for bad in bad_ones:
                a.send(Joining(bad).datagram(0.0), good.udp)
            # To oneself there is no pair.
            a.send(Joining(token(relay, A, A)).datagram(0.0), good.udp)
            await all_seen(relay)
            assert not a.has_heard()


@standing
async def test_a_recorded_join_is_worth_nothing_elsewhere() -> None:
    """The cookie is bound to the address: a replay from another brings a challenge, and moves nothing."""
    async with relaying() as relay:
        with ends(3) as (a, b, thief):
            good = token(relay, A, B)
            joining, recorded = Joining(good), []
            while not joining.joined:
                recorded.append(joining.datagram(0.0))
                a.send(recorded[-1], good.udp)
                joining.received(await a.receive(), 0.0)
            await b.join(token(relay, B, A))
            for each in recorded:
                thief.send(each, good.udp)
                answer = relay_messages.parse_answer(await thief.receive(), good.key)
                assert answer is not None
                assert answer.type is relay_messages.Type.CHALLENGE
            b.send(b"for a", good.udp)
            assert await a.receive() == b"for a"
            await all_seen(relay)
            assert not thief.has_heard()


@standing
async def test_moves_with_its_owner() -> None:
    """After a NAT rebind the same end joins from another address, and the old one is forgotten."""
    async with relaying() as relay:
        with ends(3) as (before, b, after):
            good = token(relay, A, B)
            await before.join(good)
            await b.join(token(relay, B, A))
            await after.join(good)
            b.send(b"moved", good.udp)
            assert await after.receive() == b"moved"
            before.send(b"old", good.udp)
            await all_seen(relay)
            assert not b.has_heard()


@standing
async def test_expiry() -> None:
    """A token is for joining soon; who has joined may come back later."""
    async with relaying(Limits(token_life=-1)) as relay:
        with ends(1) as (a,):
            assert (await a.join(token(relay))).refused == "the relay's token has expired"
    clock = Time()
    async with relaying(Limits(token_life=1.0), clock) as relay:
        with ends(2) as (a, b):
            good = token(relay)
            await a.join(good)
            clock.now += 2.0
            assert (await b.join(good)).joined


@standing
async def test_pairs_are_limited() -> None:
    async with relaying(Limits(pairs=3, pairs_each=2)) as relay:
        with ends(5) as five:
            sessions = [bytes([n]) * 16 for n in range(5)]
            assert (await five[0].join(token(relay, A, B, sessions[0]))).joined
            assert (await five[1].join(token(relay, A, C, sessions[1]))).joined
            assert (await five[2].join(token(relay, A, C, sessions[2]))).refused, "A has two"
            assert (await five[3].join(token(relay, C, B, sessions[3]))).joined
            assert (await five[4].join(token(relay, b"d" * 32, b"e" * 32, sessions[4]))).refused, "all three are taken"
        assert len(relay.pairs) == 3


@standing
async def test_a_silent_pair_makes_place() -> None:
    clock = Time()
    async with relaying(Limits(pairs_each=1, silent=0.2), clock) as relay:
        with ends(2) as (a, b):
            assert (await a.join(token(relay, A, B, b"1" * 16))).joined
            assert (await b.join(token(relay, A, C, b"2" * 16))).refused
            clock.now += 0.3
            assert (await b.join(token(relay, A, C, b"2" * 16))).joined
            assert relay.pairs.sessions == [b"2" * 16]
            a.send(b"x", ("127.0.0.1", relay.udp_port))
            await all_seen(relay)
            assert not b.has_heard()


@standing
async def test_leave() -> None:
    """An end that does not need the relay frees its place; nobody else can do that for it."""
    async with relaying() as relay:
        with ends(2) as (a, thief):
            good = token(relay)
            joining = await a.join(good)
            thief.send(joining.leave(), good.udp)
            thief.send(Joining(good).leave(), good.udp)
            await all_seen(relay)
            assert relay.pairs
            a.send(joining.leave(), good.udp)
            await all_seen(relay)
            assert not relay.pairs
            assert not a.has_heard() and not thief.has_heard()


@standing
async def test_quota_and_rate() -> None:
    async with relaying(Limits(pair_bytes=10_000)) as relay:
        with ends(2) as (a, b):
            await a.join(token(relay, A, B))
            await b.join(token(relay, B, A))
            await get_through(relay, 20, 10, a, b)
            assert (await a.join(token(relay, A, B))).refused
    clock = Time()
    async with relaying(Limits(pair_rate=40_000), clock) as relay:
        with ends(2) as (a, b):
            await a.join(token(relay, A, B))
            await b.join(token(relay, B, A))
            clock.now += 0.3
            await get_through(relay, 50, 10, a, b)  # a quarter of a second's worth
            clock.now += 0.11
            await get_through(relay, 50, 4, a, b)


async def get_through(relay: Relay, count: int, expected: int, a: End, b: End) -> None:
    """So many of the datagrams that are sent at once arrive, 1000 bytes each."""
    for _ in range(count):
        a.send(bytes(1000), ("127.0.0.1", relay.udp_port))
    for _ in range(expected):
        assert await b.receive() == bytes(1000)
    await all_seen(relay)
    assert not b.has_heard()


@standing
async def test_idle_ends_are_forgotten() -> None:
    clock = Time()
    async with relaying(Limits(idle=0.1), clock) as relay:
        with ends(2) as (a, b):
            await a.join(token(relay, A, B))
            await b.join(token(relay, B, A))
            clock.now += 0.2
            relay.pairs.sweep()
            assert not relay.pairs
            assert not relay.pairs.by_via
            a.send(b"x", ("127.0.0.1", relay.udp_port))
            await all_seen(relay)
            assert not b.has_heard()


@standing
async def test_segments() -> None:
    """Datagrams that came in one call leave as they came, whatever stands between them."""
    async with relaying() as relay:
        with ends(2) as (a, b):
            good = token(relay, A, B)
            await a.join(good)
            await b.join(token(relay, B, A))
            datagrams = [bytes([4, n]) + os.urandom(998) for n in range(40)] + [b"\4short"]
            batch = memoryview(b"".join(datagrams))
            gso.send(a.socket, batch, 1000, good.udp)
            assert [await b.receive() for _ in datagrams] == datagrams
            # One that looks like a message of ours in the middle of them.
            odd = [os.urandom(relay_messages.JOIN_SIZE) for _ in range(5)]
            odd[2] = relay_messages.MAGIC + b"\1" + os.urandom(relay_messages.JOIN_SIZE - 5)
            gso.send(a.socket, memoryview(b"".join(odd)), relay_messages.JOIN_SIZE, good.udp)
            assert [await b.receive() for _ in range(4)] == [odd[0], odd[1], odd[3], odd[4]]


# --- TCP ---


@pytest.mark.parametrize("other", ["udp", "tcp"])
def test_tcp(other: str) -> None:
    async def test() -> None:
        async with relaying() as relay:
            got_a: asyncio.Queue[bytes] = asyncio.Queue()
            a = await TcpPath.open(token(relay, A, B), got_a.put_nowait, 5.0)
            datagrams = [os.urandom(size) for size in (32, 100, 1400, 1400, 1400, 9000, 16, 38)]
            try:
                if other == "udp":
                    with ends(1) as (b,):
                        await b.join(token(relay, B, A))
                        for each in datagrams:
                            a.send(each)
                            assert await b.receive() == each
                            b.send(each, ("127.0.0.1", relay.udp_port))
                            assert await got_a.get() == each
                else:
                    got_b: asyncio.Queue[bytes] = asyncio.Queue()
                    tcp = await TcpPath.open(token(relay, B, A), got_b.put_nowait, 5.0)
                    for each in datagrams:
                        a.send(each)
                        assert await got_b.get() == each
                        tcp.send(each)
                        assert await got_a.get() == each
                    tcp.close()
            finally:
                a.close()

    standing(test)()


@standing
async def test_proxy() -> None:
    """WireGuard's socket speaks to the proxy; nobody else on this host gets anything through it."""
    async with relaying() as relay:
        with ends(3) as (wireguard, b, local_user):
            path = await TcpPath.open(token(relay, A, B), lambda _: None, 5.0)
            try:
                await b.join(token(relay, B, A))
                endpoint = path.proxy(wireguard.socket.getsockname()[1])
                assert endpoint[0] == "127.0.0.1"
                batch = [bytes([4]) + os.urandom(1399) for _ in range(30)] + [b"\4 that is the end of it"]
                gso.send(wireguard.socket, memoryview(b"".join(batch)), 1400, endpoint)
                assert [await b.receive() for _ in batch] == batch
                for each in batch:
                    b.send(each, ("127.0.0.1", relay.udp_port))
                    assert await wireguard.receive() == each
                local_user.send(b"\4 that is not of WireGuard", endpoint)
                wireguard.send(b"\4 that is of WireGuard", endpoint)
                assert await b.receive() == b"\4 that is of WireGuard"
            finally:
                path.close()


@standing
async def test_tcp_with_a_wrong_token_or_pin() -> None:
    async with relaying() as relay:
        good = token(relay)
        for bad in (dataclasses.replace(good, key=b"x" * 32), dataclasses.replace(good, pin=b"p" * 32)):
            with pytest.raises(OSError, match=r"ended|pinned"):
                await TcpPath.open(bad, lambda _: None, 5.0)
        assert not relay.pairs


@standing
async def test_tcp_leaves() -> None:
    async with relaying() as relay:
        path = await TcpPath.open(token(relay), lambda _: None, 5.0)
        assert len(relay.pairs) == 1
        path.close()
        await eventually(lambda: not relay.pairs)


@pytest.mark.parametrize(("waits", "written"), [(0, 1), (tcp_relay.QUEUE, 1), (tcp_relay.QUEUE + 1, 0)])
def test_tcp_answers_do_not_heap_up(waits: int, written: int) -> None:
    """Of who asks to join again and again, and reads nothing."""
    class Transport(asyncio.Transport):
        def __init__(self) -> None:
            super().__init__()
            self.written: list[bytes] = []

        def get_write_buffer_size(self) -> int:
            return waits

        def write(self, data: object) -> None:
            self.written.append(bytes(data))  # type: ignore[call-overload]

    class Asked:
        limits = Limits()
        dropped = 0

        def answer(self, *_: object) -> tuple[bytes, None]:
            return b"JOINED", None

    @standing
    async def test() -> None:
        relay = Asked()
        connection = tcp_relay._Connection(relay, relay)  # type: ignore[arg-type]
        connection._transport = transport = Transport()
        connection.data_received(relay_messages.framed(bytes(relay_messages.JOIN_SIZE)))
        await asyncio.sleep(0)
        assert (len(transport.written), relay.dropped) == (written, 1 - written)

    test()


@settings(max_examples=tries(8, 100), deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=10), st.booleans())
def test_tcp_garbage(pieces: list[bytes], framed: bool) -> None:
    async def test() -> None:
        relay = await Relay.serve("127.0.0.1")
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", relay.tcp_port)
            for piece in pieces:
                writer.write(relay_messages.framed(piece) if framed else piece)
            with contextlib.suppress(OSError):
                await writer.drain()
            writer.close()
            with ends(2) as (a, b):  # and it still works
                await a.join(token(relay, A, B))
                await b.join(token(relay, B, A))
                a.send(b"hello", ("127.0.0.1", relay.udp_port))
                assert await b.receive() == b"hello"
        finally:
            await relay.close()

    standing(test)()


@settings(max_examples=tries(10, 200), deadline=None)
@given(st.lists(st.binary(max_size=1500) | st.binary(max_size=97).map(relay_messages.MAGIC.__add__), max_size=30))
def test_udp_garbage(datagrams: list[bytes]) -> None:
    async def test() -> None:
        async with relaying() as relay:
            with ends(3) as (a, b, stranger):
                await a.join(token(relay, A, B))
                await b.join(token(relay, B, A))
                for each in datagrams:
                    stranger.send(each, ("127.0.0.1", relay.udp_port))
                a.send(b"hello", ("127.0.0.1", relay.udp_port))
                assert await b.receive() == b"hello"
                await all_seen(relay)
                assert not stranger.has_heard()

    standing(test)()
