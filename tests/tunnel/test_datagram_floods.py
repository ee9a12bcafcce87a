# SPDX-License-Identifier: GPL-2.0-or-later
"""Datagrams by TCP that cost their sender nothing, and must not make everybody else wait."""

from __future__ import annotations

import asyncio

import pytest

from tests.tunnel.clock import pass_time, standing
from tests.tunnel.transports import NONE, READ, Taken
from tunnel.relay import relay_messages
from tunnel.relay.relay_proxy import TcpPath
from tunnel.rendezvous import limits, tcp_relay
from tunnel.rendezvous.udp_relay import Relay


def joined() -> tuple[tcp_relay._Connection, Taken, list[int]]:
    """A TCP connection that has joined, and the sizes of the batches that were forwarded from it."""
    forwarded: list[int] = []

    class Forwards(Relay):
        def __init__(self) -> None:
            self.dropped = 0

        def forward(self, end: object, data: memoryview, _segment: int) -> None:
            assert end == "end"
            forwarded.append(len(data))

        def answer(self, *_: object) -> tuple[bytes, None]:
            forwarded.append(-1)
            return b"challenge", None

    connection = tcp_relay._Connection(Forwards(), NONE)
    connection._transport = transport = Taken()
    connection.end = "end"  # type: ignore[assignment]
    return connection, transport, forwarded


def relayed(monkeypatch: pytest.MonkeyPatch) -> tuple[TcpPath, list[bytes]]:
    """A path through a relay, and what is handed to WireGuard of what comes by it."""
    sent: list[bytes] = []
    monkeypatch.setattr("tunnel.gso.send", lambda _sock, data, _size, _to: sent.append(bytes(data)))
    path = TcpPath(NONE, NONE)
    path._local, path._wireguard = object(), ("127.0.0.1", 1)  # type: ignore[assignment]
    return path, sent


@pytest.mark.parametrize("size", [0, 1, relay_messages.SHORTEST - 1])
@pytest.mark.parametrize("joins", [True, False])
def test_datagrams_that_are_too_short_to_be_one_end_the_connection(size: int, joins: bool) -> None:
    @standing
    async def test() -> None:
        connection, transport, forwarded = joined()
        if not joins:
            connection.end = None
        connection.data_received(relay_messages.framed(bytes(size)) * (READ // (size + 2)))
        assert transport.aborted
        assert forwarded == []

    test()


ALTERNATING = relay_messages.framed(bytes(16)) + relay_messages.framed(bytes(17))
CALLS_AT_ONCE = int(limits.CALLS.burst)


@standing
async def test_datagrams_of_alternating_sizes_are_forwarded_at_a_rate() -> None:
    """Each is a call of its own, and one read may bring 14,000."""
    connection, transport, forwarded = joined()
    data = ALTERNATING * (READ // len(ALTERNATING))
    free = 1 + len(data) // limits.CALL_BYTES
    connection.data_received(data)
    assert len(forwarded) == CALLS_AT_ONCE + free
    assert connection._relay.dropped == 2 * (READ // len(ALTERNATING)) - len(forwarded)
    connection.data_received(data)
    assert len(forwarded) == CALLS_AT_ONCE + 2 * free
    pass_time(0.5)
    connection.data_received(data)
    assert len(forwarded) == CALLS_AT_ONCE + 3 * free + limits.CALLS.per_second / 2
    assert not transport.aborted


@standing
async def test_what_a_transfer_sends_by_tcp_is_free() -> None:
    connection, _, forwarded = joined()
    # What one write of 64 KiB becomes in the tunnel, with an echo behind it.
    data = relay_messages.framed(bytes(1400)) * 46 + b"".join(relay_messages.framed(bytes(n)) for n in (900, 96))
    for _ in range(2 * CALLS_AT_ONCE):
        connection.data_received(data)
    assert len(forwarded) == 4 * 2 * CALLS_AT_ONCE
    assert connection._relay.dropped == 0


@standing
async def test_alternating_sizes_from_a_relay_are_handed_to_wireguard_at_a_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, sent = relayed(monkeypatch)
    data = ALTERNATING * (READ // len(ALTERNATING))
    path.data_received(data)
    assert len(sent) == CALLS_AT_ONCE + 1 + len(data) // limits.CALL_BYTES
    assert path.dropped == 2 * (READ // len(ALTERNATING)) - len(sent)


@pytest.mark.parametrize("joins", [True, False], ids=["has joined", "has not joined"])
def test_joins_without_end_end_the_connection(joins: bool) -> None:
    """Each costs a proof, and an answer; an end joins once."""
    @standing
    async def test() -> None:
        connection, transport, asked = joined()
        if not joins:
            connection.end = None
        join = relay_messages.framed(relay_messages.MAGIC + bytes(relay_messages.JOIN_SIZE - 4))
        connection.data_received(join * (READ // len(join)))
        assert transport.aborted
        assert asked == ([] if joins else [-1] * tcp_relay.JOINS)

    test()


@pytest.mark.parametrize("size", [relay_messages.SHORTEST, 32, 38])
def test_the_shortest_that_there_are_are_forwarded(size: int) -> None:
    @standing
    async def test() -> None:
        connection, transport, forwarded = joined()
        data = relay_messages.framed(bytes(size)) * 3
        connection.data_received(data[:-1])
        connection.data_received(data[-1:])
        assert sum(forwarded) == 3 * size
        assert not transport.aborted

    test()


@standing
async def test_what_comes_together_goes_on_together() -> None:
    """In one call of TLS', whatever the sizes, up to what may wait for a slow end."""
    connection, transport, _ = joined()
    data = bytes(16)
    for size in (16, 17) * 1000:
        connection.send(memoryview(bytes(size)), 0)
    await asyncio.sleep(0)
    assert [len(each) for each in transport.written] == [1000 * (18 + 19)]
    for _ in range(3 * tcp_relay.QUEUE // len(data)):
        connection.send(memoryview(data), 0)
    await asyncio.sleep(0)
    assert len(transport.written) == 2
    assert tcp_relay.QUEUE < len(transport.written[1]) <= tcp_relay.QUEUE + 18
    assert connection._relay.dropped


@standing
async def test_a_relays_datagrams_that_are_too_short_are_not_handed_to_wireguard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They do not end the path: the relay has them from whoever can send under the other end's address."""
    path, sent = relayed(monkeypatch)
    nothing, one = relay_messages.framed(b"") * 1000, relay_messages.framed(b"x") * 1000
    path.data_received(nothing + relay_messages.framed(b"\4" * 32) + one)
    assert sent == [b"\4" * 32]
