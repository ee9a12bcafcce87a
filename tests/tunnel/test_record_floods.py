# SPDX-License-Identifier: GPL-2.0-or-later
"""What TLS takes without a word to whoever counts messages and frames: requests for new keys, tickets, tiny records."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from websockets.utils import accept_key

from migrator.base import strict_json
from tests.tunnel.clock import eventually, pass_time, standing
from tests.tunnel.flooded_agent import leaves_and_comes_back
from tests.tunnel.serving import LOOPBACK, serving
from tests.tunnel.tls_records import DATA, HANDSHAKE, KEY_UPDATE, TICKET, Attacker
from tunnel import metered_tls
from tunnel.identity.own_identity import Identity
from tunnel.identity.tunnel_config import Server
from tunnel.relay import relay_messages
from tunnel.relay.relay_client import Joining, RelayToken
from tunnel.relay.relay_proxy import TcpPath
from tunnel.rendezvous import server
from tunnel.rendezvous.certificate import Certificate
from tunnel.rendezvous.udp_relay import Relay
from tunnel.signalling import link
from tunnel.signalling.client import Signalling

KEY = "AAAAAAAAAAAAAAAAAAAAAA=="
REQUEST = (f"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {KEY}\r\n"
           "Sec-WebSocket-Version: 13\r\n\r\n").encode()
PING = bytes([0x89, 0x80, 0, 0, 0, 0])
MANY = 4000


def frame(message: object, *, masked: bool = True) -> bytes:
    data = json.dumps(message).encode()
    size = bytes([masked << 7 | len(data)]) if len(data) < 126 else struct.pack(">BH", masked << 7 | 126, len(data))
    return b"\x81" + size + bytes(4 * masked) + data


def find(ref: int, size: int = 0) -> bytes:
    return frame({"type": "find", "ref": ref, "to": "00" * 32, "pad": "x" * size})


def key_updates(attacker: Attacker, _: bytes) -> bytes:
    return b"".join(attacker.record(KEY_UPDATE, HANDSHAKE) for _ in range(MANY))


def tickets(attacker: Attacker, _: bytes) -> bytes:
    return b"".join(attacker.record(TICKET, HANDSHAKE) for _ in range(MANY // 5))


def tiny(attacker: Attacker, data: bytes) -> bytes:
    """What is data, a byte at a time."""
    return b"".join(attacker.record(bytes([each])) for each in data)


def padded(attacker: Attacker, data: bytes) -> bytes:
    step = -(-len(data) // 8)
    return b"".join(attacker.record(data[at : at + step], DATA, 15_000) for at in range(0, len(data), step))


Flood = Callable[[Attacker, bytes], bytes]


@pytest.mark.parametrize("flood", [key_updates, tiny, padded])
def test_what_comes_beside_messages_ends_a_connection(flood: Flood) -> None:
    """Before all of it has been looked at, and however it is divided."""
    @standing
    async def test() -> None:
        async with serving() as there, await Signalling.connect([there.server], Identity.generate()) as honest:
            attacker = await Attacker.connected(LOOPBACK, there.running.ports[0])
            attacker.say(REQUEST)
            hello = await attacker.read(b'"challenge"')
            challenge = strict_json.decode(json.loads(hello[hello.index(b'{"type"'):])["challenge"])
            one, pin = Identity.generate(), there.server.pin
            assert pin
            attacker.say(frame({"type": "present", "identity": one.public.to_text(), "waits": False,
                                "signature": strict_json.encode(one.sign(link.statement(challenge, pin)))}))
            await attacker.read(b'"welcome"')
            attacker.say(find(1))
            await attacker.read(b'"answer"')
            came = attacker.came
            await attacker.flood(flood(attacker, find(2, MANY)) + attacker.record(find(3)))
            assert await attacker.ended()
            allowed = metered_tls.FROM_PEERS
            beside = allowed.beside.burst + metered_tls.RECORD + allowed.slice
            assert attacker.came - came < beside + 100, "it was answered no further"
            attacker.close()
            assert not await honest.finds(Identity.generate().public)
            await eventually(lambda: there.running.open_connections() == 1)

    test()


@contextlib.asynccontextmanager
async def relaying() -> AsyncIterator[Relay]:
    relay = await Relay.serve(LOOPBACK, tls=Certificate.load(None, None).relay_context)
    try:
        yield relay
    finally:
        await relay.close()


def token(relay: Relay, own: bytes, peer: bytes) -> RelayToken:
    return RelayToken(LOOPBACK, relay.udp_port, relay.tcp_port, *relay.token(b"s" * 16, own, peer))


@standing
async def test_key_updates_end_a_connection_to_the_relay() -> None:
    async with relaying() as relay:
        attacker = await Attacker.connected(LOOPBACK, relay.tcp_port)
        join = relay_messages.framed(Joining(token(relay, b"a" * 32, b"b" * 32)).datagram(0))
        attacker.say(join)
        await attacker.read()
        await attacker.flood(key_updates(attacker, b"") + attacker.record(join))
        assert await attacker.ended()
        attacker.close()
        await eventually(lambda: relay.open_connections() == 0)


@standing
async def test_a_handshake_without_end_is_not_read() -> None:
    """A first message of which a byte comes in each record."""
    async with serving() as there:
        reader, writer = await asyncio.open_connection(LOOPBACK, there.running.ports[0])
        writer.write(b"\x16\3\1\0\4\1\1\xff\xff" + b"\x16\3\1\0\1x" * 20_000)
        with contextlib.suppress(ConnectionError):
            await reader.read()
        await eventually(lambda: there.running.open_connections() == 0)
        writer.close()


@contextlib.asynccontextmanager
async def hostile(serves: Callable[[Attacker], Awaitable[None]]) -> AsyncIterator[tuple[int, Certificate]]:
    """A server that does that with each connection."""
    certificate = Certificate.load(None, None)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        attacker = Attacker(reader, writer, certificate.context, server=True)
        with contextlib.suppress(ConnectionError):
            await attacker.greet()
            await serves(attacker)
            await attacker.ended()
        attacker.close()

    there = await asyncio.start_server(handle, LOOPBACK, 0)
    async with there:
        yield there.sockets[0].getsockname()[1], certificate


@pytest.mark.parametrize("flood", [key_updates, tickets, tiny])
def test_an_agent_leaves_a_server_that_sends_what_is_no_message(flood: Flood) -> None:
    said: list[str] = []
    refused = frame({"type": "refused", "reason": "that was all", "pad": "x" * MANY}, masked=False)

    async def serves(attacker: Attacker) -> None:
        request = await attacker.read(b"\r\n\r\n")
        key = request.decode().split("Sec-WebSocket-Key: ")[1].split("\r\n")[0]
        attacker.say(f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                     f"Sec-WebSocket-Accept: {accept_key(key)}\r\n\r\n".encode())
        attacker.say(frame({"type": "hello", "version": link.VERSION, "reflectors": [], "relay": False,
                            "challenge": strict_json.encode(bytes(link.CHALLENGE_SIZE))}, masked=False))
        await attacker.read(b"\x81")
        attacker.say(frame({"type": "welcome", "line": "0" * 16}, masked=False))
        await eventually(lambda: len(said) % 2)
        await attacker.flood(flood(attacker, refused) + attacker.record(refused))

    @standing
    async def test() -> None:
        async with hostile(serves) as (port, certificate):
            there = Server.parse(f"wss://{LOOPBACK}:{port}#sha256:{certificate.sha256.hex()}")
            async with leaves_and_comes_back(there, said):
                pass

    test()


@standing
async def test_a_host_leaves_a_relay_that_sends_key_updates() -> None:
    claim = RelayToken("", 0, 0, bytes(relay_messages.CLAIM_SIZE), bytes(relay_messages.KEY_SIZE))

    async def serves(attacker: Attacker) -> None:
        asked = relay_messages.parse_join((await attacker.read())[2:])
        assert asked
        joined = relay_messages.joined(claim.key, asked.number, present=False)
        await attacker.flood(key_updates(attacker, b"") + attacker.record(relay_messages.framed(joined)))

    async with hostile(serves) as (port, _):
        with pytest.raises(OSError, match=metered_tls.TOO_MUCH):
            await TcpPath.open(RelayToken(LOOPBACK, port, port, claim.claim, claim.key), lambda _: None, 5)


# --- what honest ends send ---


@standing
async def test_the_smallest_frames_are_taken_as_often_as_may_be() -> None:
    """A record each, at the rate at which frames are taken; the library's own pongs are among them."""
    async with serving() as there, await Signalling.connect([there.server], Identity.generate()) as signalling:
        transport = signalling._link._socket.transport
        pass_time(10.0)
        for _ in range(20):
            for _ in range(int(server.FRAMES.per_second * 10) - 5):
                transport.write(PING)
            assert not await signalling.finds(Identity.generate().public)
            pass_time(10.0)


@standing
async def test_the_largest_messages_are_taken_as_often_as_may_be() -> None:
    async with serving() as there, await Signalling.connect([there.server], Identity.generate()) as signalling:
        for _ in range(60):
            with pytest.raises(Exception, match="is not waiting"):
                await signalling.send(Identity.generate().public, bytes(link.DATA_MAX), "0" * 16)


@standing
async def test_the_smallest_datagrams_are_relayed_without_end() -> None:
    """A record each: their framing is more than they are."""
    a, b = b"a" * 32, b"b" * 32
    heard: list[bytes] = []
    async with relaying() as relay:
        one = await TcpPath.open(token(relay, a, b), lambda _: None, 5)
        other = await TcpPath.open(token(relay, b, a), heard.append, 5)
        for number in range(40):
            for _ in range(100):
                one.send(bytes(16))
            one.send(b"%020d" % number)
            await eventually(lambda number=number: b"%020d" % number in heard)  # type: ignore[misc]
        assert len(heard) == 40 * 101
        for each in (one, other):
            assert not each.closed.done()
            each.close()
