# SPDX-License-Identifier: GPL-2.0-or-later
"""Frames and headers that cost their sender nothing, and must not make everybody else wait."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.server import ServerProtocol

from migrator.base import strict_json
from tests.tunnel.clock import as_time_goes_by, eventually, pass_time, standing
from tests.tunnel.flooded_agent import leaves_and_comes_back
from tests.tunnel.serving import LOOPBACK, serving
from tests.tunnel.transports import NONE, READ, Taken
from tunnel.identity.own_identity import Identity, PublicIdentity
from tunnel.identity.peers import Peer, Peers
from tunnel.identity.tunnel_config import Server
from tunnel.rendezvous import server
from tunnel.rendezvous.certificate import Certificate
from tunnel.rendezvous.limits import Limits, Rate
from tunnel.rendezvous.lines import Line
from tunnel.session import responder
from tunnel.signalling import link
from tunnel.signalling.client import Message, Signalling
from tunnel.signalling.link import Link
from tunnel.tunnel_errors import RendezvousUnavailable

FAST = Rate(1e6, 1e6)
PING, PONG = 0x89, 0x8a
REQUEST = (b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
           b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n")


class Protocol(ServerProtocol):
    """Counts what it is given to take apart."""

    fed = 0

    def receive_data(self, data: bytes | bytearray) -> None:
        self.fed += len(data)
        super().receive_data(data)


class Serves:
    """What a connection of the library's asks of its server."""

    def __init__(self) -> None:
        self.handler_tasks: set[asyncio.Task[None]] = set()

    async def handler(self, _: object) -> None:
        pass

    def start_connection_handler(self, _: object) -> None:
        """Debian 13's websockets, 15, asks for this instead."""

    def is_serving(self) -> bool:
        return True


async def accepted() -> tuple[server._Connection, Protocol, Taken]:
    """A connection to the rendezvous that stands, without a socket."""
    protocol, transport, serves = Protocol(max_size=link.MESSAGE_MAX), Taken(), Serves()
    connection = server._Connection(protocol, serves)  # type: ignore[arg-type]
    connection.connection_made(transport)
    connection.data_received(REQUEST + b"\r\n")
    await connection.handshake(server_header=None)
    protocol.fed = 0
    return connection, protocol, transport


def frames(opcode: int, count: int, *, masked: bool = True) -> bytes:
    return (bytes([opcode, 0x80, 0, 0, 0, 0]) if masked else bytes([opcode, 0])) * count


@pytest.mark.parametrize("opcode", [PING, PONG, 0x81], ids=["pings", "pongs", "messages"])
def test_a_read_full_of_frames_is_not_taken_apart_to_its_end(opcode: int) -> None:
    """However many there are in it: nobody else has a turn meanwhile."""
    @standing
    async def test() -> None:
        connection, protocol, transport = await accepted()
        for _ in range(3):
            connection.data_received(frames(opcode, READ // 6))
        assert transport.aborted
        assert protocol.fed == link.SLICE

    test()


@standing
async def test_frames_are_counted_by_the_loops_clock() -> None:
    connection, _, transport = await accepted()
    connection.data_received(frames(PING, int(server.FRAMES.burst)))
    assert not transport.is_closing()
    pass_time(10.0)
    connection.data_received(frames(PING, int(10 * server.FRAMES.per_second)))
    assert not transport.is_closing()
    answers = len(transport.written)
    connection.data_received(frames(PONG, 1))
    assert transport.is_closing()
    connection.data_received(frames(PING, 1))
    assert len(transport.written) == answers, "nothing is read from then on"


@standing
async def test_what_came_before_a_goodbye_counts() -> None:
    """In one read with it: the library closes the transport before it hands on what it has taken apart."""
    connection, _, transport = await accepted()
    text = b"x" * 3 * link.SLICE
    mask = bytes(4)
    connection.data_received(
        bytes([0x81, 0x80 | 126]) + len(text).to_bytes(2) + mask + text + bytes([0x88, 0x82, *mask]) + b"\x03\xe8")
    assert transport.aborted
    assert await connection.recv() == text.decode()


@contextlib.asynccontextmanager
async def flooding(data: bytes, limit: int = 2 * READ) -> AsyncIterator[tuple[Server, list[ServerConnection]]]:
    """A rendezvous that lets everybody in, then sends that again and again; and the connections that it has had."""
    certificate = Certificate.load(None, None)
    had: list[ServerConnection] = []

    async def floods(socket: ServerConnection) -> None:
        had.append(socket)
        await socket.send(json.dumps({"type": "hello", "version": link.VERSION, "reflectors": [], "relay": False,
                                      "challenge": strict_json.encode(bytes(link.CHALLENGE_SIZE))}))
        await socket.recv()
        await socket.send(json.dumps({"type": "welcome", "line": "0" * 16}))
        transport, sent = socket.transport, 0
        while not transport.is_closing() and sent < limit:
            transport.write(data)
            sent += len(data)
            await asyncio.sleep(0)  # for the loop to notice an end
            await eventually(lambda: transport.is_closing() or transport.get_write_buffer_size() < len(data))
        with contextlib.suppress(Exception):
            await socket.send(json.dumps({"type": "refused", "reason": "that was all"}))
        await socket.wait_closed()

    async with serve(floods, LOOPBACK, 0, ssl=certificate.context, ping_interval=None, compression=None) as there:
        port = next(iter(there.sockets)).getsockname()[1]
        yield Server.parse(f"wss://{LOOPBACK}:{port}#sha256:{certificate.sha256.hex()}"), had


@pytest.mark.parametrize("opcode", [PING, PONG], ids=["pings", "pongs"])
def test_an_agent_leaves_a_server_that_floods_it_and_comes_back_after_a_pause(opcode: int) -> None:
    said: list[str] = []

    @standing
    async def test() -> None:
        async with flooding(frames(opcode, 2000, masked=False)) as (there, had):
            async with leaves_and_comes_back(there, said):
                assert len(had) == 1, "not at once"
            assert len(had) == 2

    test()


@pytest.mark.parametrize("opcode", [PING, PONG], ids=["pings whose answers are read", "pongs"])
def test_a_flood_of_what_is_no_message_ends_the_connection(opcode: int) -> None:
    @standing
    async def test() -> None:
        async with serving() as there:
            signalling = await Signalling.connect([there.server], Identity.generate())
            transport = signalling._link._socket.transport
            transport.write(frames(opcode, 2000))
            await asyncio.sleep(0)
            with pytest.raises(RendezvousUnavailable):
                await signalling.finds(Identity.generate().public)
            await signalling.close()
            await eventually(lambda: there.running.open_connections() == 0)

    test()


@standing
async def test_who_sends_a_burst_of_messages_is_told_of_too_many_and_not_just_cut_off() -> None:
    async with serving() as there:
        signalling = await Signalling.connect([there.server], Identity.generate())
        burst = int(Limits().messages.burst)
        for number in range(3 * burst - 10):  # and reads no answers meanwhile
            await signalling._link.send({"type": "find", "ref": 1000 + number, "to": "00" * 32})
        with pytest.raises(RendezvousUnavailable, match="too many messages"):
            await signalling.receive()
        await as_time_goes_by(signalling.close())


@pytest.mark.parametrize("rings", [True, False], ids=["rings", "messages onto its line"])
def test_a_peer_is_not_cut_off_by_what_others_bring_it(rings: bool) -> None:
    """Identities cost nothing, and a peer that takes more than so many frames of a server ends the connection."""
    @standing
    async def test() -> None:
        agent_is, peer_is = Identity.generate(), Identity.generate()
        agent_id = agent_is.public
        async with (
            serving(Limits(messages=FAST, rings=FAST)) as there,
            await Signalling.connect([there.server], agent_is, waits=True) as agent,
            await Signalling.connect([there.server], peer_is) as peer,
        ):
            await peer.ring(agent_id, b"x")
            await agent.send(peer_is.public, b"x", (await agent.receive()).line)
            line = (await peer.receive()).line

            async def brings(who: Signalling, ring: bool, data: bytes) -> None:
                await (who.ring(agent_id, data) if ring else who.send(agent_id, data, line))

            taken = 0
            for _ in range(3):
                async with await Signalling.connect([there.server], Identity.generate()) as stranger:
                    for _ in range(150):
                        try:
                            await brings(stranger, rings, b"x")
                            taken += 1
                        except RendezvousUnavailable as error:
                            assert "takes no more" in str(error)
                        while agent._inbox.qsize():
                            await agent.receive()
            assert taken <= Limits().brought.burst
            assert await peer.finds(agent_id)
            await brings(peer, not rings, b"the other kind")  # has a place of its own
            pass_time(1.0)
            await brings(peer, rings, b"later")
            while (await agent.receive()).data != b"later":
                pass

    test()


@standing
async def test_an_agent_answers_no_peer_more_often_than_it_may_send(tmp_path: Path) -> None:
    """Else the rendezvous ends its connection. Each is answered once whatever the others do, up to a limit for all."""
    class Over:
        server = Server.parse("wss://192.0.2.1")

        def __init__(self) -> None:
            self.sent: list[PublicIdentity] = []

        async def send(self, to: PublicIdentity, _data: bytes, _line: str) -> None:
            self.sent.append(to)

    class Channel:
        def __init__(self, peer: Peer) -> None:
            self.peer, self.session = peer, b"another"

        async def send(self, _kind: str, _body: object) -> None:
            over.sent.append(self.peer.public)

    peers = Peers(tmp_path / "peers")
    for name in ("alice", "eve"):
        peers.pin(name, Identity.generate().public)
    over: Any = Over()
    agent = responder._Agent(Identity.generate(), peers, [], NONE, "prefer-direct", "", lambda _: None)
    served: Any = {bytes([n]): Channel(peers.get("eve")) for n in range(responder.SESSIONS_MAX)}
    agent._sessions = served  # as many as may be

    async def asks(name: str, times: int) -> int:
        over.sent.clear()
        peer = peers.get(name)
        for _ in range(times):
            agent._rung(over, Message(peer.public.id, "line", b"MGS1" + bytes(100)))
            channel: Any = Channel(peer)
            agent._begin(channel, {})
            for _ in range(3):
                await asyncio.sleep(0)
        return sum(each == peer.public for each in over.sent)

    assert await asks("eve", 50) == responder.WORDS_EACH.burst
    assert await asks("alice", 1) == 2, "an honest one hears both"
    pass_time(2.0)
    assert await asks("eve", 50) == 2
    pass_time(60.0)
    assert await asks("eve", 50) + await asks("alice", 50) == responder.WORDS.burst
    await agent.close()


# --- headers ---


@standing
async def test_headers_without_end_are_not_read() -> None:
    async with serving() as there:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        for lines in (b"".join(b"%s%03d: \r\n" % (b"X" * 8000, n) for n in range(100)), b"X: \r\n" * 4000):
            reader, writer = await asyncio.open_connection(LOOPBACK, there.running.ports[0], ssl=context)
            writer.write(REQUEST + lines + b"\r\n")
            with contextlib.suppress(ConnectionError):
                assert b"101" not in await reader.readline()
            writer.close()
        await eventually(lambda: there.running.open_connections() == 0)


@standing
async def test_an_answer_without_end_is_not_read() -> None:
    """Nor one in pieces of a byte each, which are taken apart one by one."""
    context = Certificate.load(None, None)
    sent = 0

    async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(OSError):
            while sent < 2 * READ and not writer.is_closing():
                writer.write(b"1\r\nx\r\n" * 1000)
                sent += 6000
                await writer.drain()
                await asyncio.sleep(0)
            writer.write(b"0\r\n\r\n")
            await writer.drain()
        writer.close()

    there = await asyncio.start_server(answers, LOOPBACK, 0, ssl=context.context)
    port = there.sockets[0].getsockname()[1]
    with pytest.raises(RendezvousUnavailable) as caught:
        await Link.open(Server.parse(f"wss://{LOOPBACK}:{port}#sha256:{context.sha256.hex()}"), 5)
    assert "404" not in str(caught.value), "it was read to its end"
    there.close()


@standing
async def test_the_headers_of_a_connection_that_stands_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    sockets: list[ServerConnection] = []

    class Seen(Line):
        def __init__(self, socket: ServerConnection, *arguments: Any) -> None:
            sockets.append(socket)
            super().__init__(socket, *arguments)

    monkeypatch.setattr(server, "Line", Seen)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    async with serving() as there:
        url = f"wss://{LOOPBACK}:{there.running.ports[0]}/"
        headers = {"X-Long": "x" * 7000, "X" * 7000: "short"}
        async with connect(url, ssl=context, compression=None, proxy=None, additional_headers=headers) as connection:
            await connection.recv()
            (socket,) = sockets
            assert socket.request is not None
            assert list(socket.request.headers.raw_items()) == []
