# SPDX-License-Identifier: GPL-2.0-or-later
"""How a rendezvous is connected to: where a server, or somebody on the way to it, cannot send this host."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import pytest
from websockets.asyncio.server import ServerConnection, serve

from migrator.base import strict_json
from tests.tunnel.clock import eventually, simulated, standing
from tests.tunnel.serving import LOOPBACK, serving
from tunnel.identity.tunnel_config import Server
from tunnel.metered_tls import MeteredObject
from tunnel.rendezvous.certificate import Certificate
from tunnel.signalling import link
from tunnel.signalling.link import Link
from tunnel.tunnel_errors import RendezvousUnavailable


class Elsewhere:
    """A TLS server that answers one thing to whatever it is asked."""

    def __init__(self, answer: str = "") -> None:
        self.asked: list[bytes] = []
        self.ended = 0  # connections
        self.port = 0
        self.certificate = Certificate.load(None, None)
        self._answer = answer

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Elsewhere]:
        server = await asyncio.start_server(self._plain, LOOPBACK, 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            await server.wait_closed()

    async def _plain(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # The handshake is a step of its own here: a connection of which nothing comes after it is counted, too.
        with contextlib.suppress(OSError, EOFError):
            await writer.start_tls(self.certificate.context)
            self.asked.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(self._answer.encode())
            await writer.drain()
        self.ended += 1
        writer.close()

    def server(self, pin: bytes | None = None) -> Server:
        return Server.parse(f"wss://{LOOPBACK}:{self.port}#sha256:{(pin or self.certificate.sha256).hex()}")


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
@pytest.mark.parametrize("away", [True, False], ids=["to another server", "to another path of its own"])
def test_no_redirect_is_followed(status: int, away: bool) -> None:
    @standing
    async def test() -> None:
        async with Elsewhere().serving() as victim:
            where = f"wss://{LOOPBACK}:{victim.port}/admin?reboot=1" if away else "/admin?reboot=1"
            answer = f"HTTP/1.1 {status} Away\r\nLocation: {where}\r\nContent-Length: 0\r\n\r\n"
            async with Elsewhere(answer).serving() as there:
                with pytest.raises(RendezvousUnavailable) as caught:
                    await Link.open(there.server(), 5)
                assert f"it redirects to {where}, which is not followed" in str(caught.value)
                assert [asked.split(b"\r\n")[0] for asked in there.asked] == [b"GET / HTTP/1.1"]
            assert (victim.asked, victim.ended) == ([], 0)

    test()


@standing
async def test_the_library_would_follow_none_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """Should a later version not ask our class any more: it has a socket, and that is spent."""
    monkeypatch.delattr(link._Connect, "process_redirect")
    async with Elsewhere().serving() as victim:
        answer = f"HTTP/1.1 302 Away\r\nLocation: wss://{LOOPBACK}:{victim.port}/\r\nContent-Length: 0\r\n\r\n"
        async with Elsewhere(answer).serving() as there:
            with pytest.raises(RendezvousUnavailable, match="cannot follow redirect"):
                await Link.open(there.server(), 5)
        assert victim.ended == 0


def test_where_a_redirect_leads_is_shown_without_what_a_terminal_would_act_on() -> None:
    @standing
    async def test() -> None:
        answer = f"HTTP/1.1 302 Away\r\nLocation: wss://\xe9{'x' * 999}\r\nContent-Length: 0\r\n\r\n"
        async with Elsewhere(answer).serving() as there:
            with pytest.raises(RendezvousUnavailable, match="it redirects to") as caught:
                await Link.open(there.server(), 5)
            assert str(caught.value).isprintable() and len(str(caught.value)) < 400

    test()


@standing
async def test_a_server_with_another_certificate_is_asked_nothing() -> None:
    async with Elsewhere().serving() as there:
        with pytest.raises(RendezvousUnavailable, match="not the pinned one"):
            await Link.open(there.server(bytes(32)), 5)
        await eventually(lambda: there.ended)
        assert there.asked == []


@standing
async def test_a_pin_is_looked_at_again_once_the_connection_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Should a later `ssl` not ask our class any more, nothing is presented to that server all the same."""
    monkeypatch.setattr(link._PinnedContext, "sslobject_class", MeteredObject)
    async with serving() as there:
        wrong = Server.parse(f"wss://{LOOPBACK}:{there.running.ports[0]}#sha256:{'0' * 64}")
        with pytest.raises(RendezvousUnavailable, match="not the pinned one"):
            await Link.open(wrong, 5)


# --- a server that lets nothing through -------------------------------------------------------------------------

FLOOD = 64 << 20  # bytes, more than the kernel takes for both ends


@standing
async def test_a_server_that_sends_pings_and_reads_no_answers_is_left() -> None:
    """The library answers each, and keeps what does not get away."""
    sent = 0
    certificate = Certificate.load(None, None)

    async def floods(socket: ServerConnection) -> None:
        nonlocal sent
        await socket.send(json.dumps({"type": "hello", "version": link.VERSION, "reflectors": [], "relay": False,
                                      "challenge": strict_json.encode(bytes(link.CHALLENGE_SIZE))}))
        transport, pings = socket.transport, (bytes([0x89, 125]) + bytes(125)) * 200
        transport.pause_reading()
        while not transport.is_closing() and sent < FLOOD:
            transport.write(pings)
            sent += len(pings)
            await asyncio.sleep(0)  # for the loop to notice an end
            await eventually(lambda: transport.is_closing() or transport.get_write_buffer_size() < len(pings))
        transport.abort()

    async with serve(floods, LOOPBACK, 0, ssl=certificate.context, ping_interval=None, compression=None) as there:
        port = next(iter(there.sockets)).getsockname()[1]
        found = await Link.open(Server.parse(f"wss://{LOOPBACK}:{port}#sha256:{certificate.sha256.hex()}"), 5)
        with pytest.raises(RendezvousUnavailable):
            await found.receive()
        await found.close()
    assert sent < FLOOD


@standing
async def test_a_server_that_sends_pieces_of_messages_is_left() -> None:
    """Empty ones, without end, are no message and have no size."""
    ended = 0
    certificate = Certificate.load(None, None)

    async def pieces(socket: ServerConnection) -> None:
        nonlocal ended
        await socket.send(json.dumps({"type": "hello", "version": link.VERSION, "reflectors": [], "relay": False,
                                      "challenge": strict_json.encode(bytes(link.CHALLENGE_SIZE))}))
        socket.transport.write(bytes([0x01, 0, 0x00, 0]))
        await socket.wait_closed()
        ended += 1

    async with serve(pieces, LOOPBACK, 0, ssl=certificate.context, ping_interval=None, compression=None) as there:
        port = next(iter(there.sockets)).getsockname()[1]
        server = Server.parse(f"wss://{LOOPBACK}:{port}#sha256:{certificate.sha256.hex()}")
        with pytest.raises(RendezvousUnavailable):
            await (await Link.open(server, 5)).receive()
        await eventually(lambda: ended)


class Stuck:
    """A connection that takes nothing, not even a goodbye."""

    def __init__(self) -> None:
        self.aborted = 0
        self.transport = self

    async def send(self, _text: str) -> None:
        await asyncio.Event().wait()

    async def close(self) -> None:
        await asyncio.Event().wait()

    def abort(self) -> None:
        self.aborted += 1


def stuck() -> tuple[Link, Stuck]:
    socket = Stuck()
    return Link(Server.parse(f"wss://rv.example#sha256:{'0' * 64}"), socket, b"", LOOPBACK), socket  # type: ignore[arg-type]


@simulated
async def test_nobody_waits_for_a_server_that_takes_nothing() -> None:
    there, socket = stuck()
    with pytest.raises(RendezvousUnavailable, match="it has accepted nothing for 5 seconds"):
        await there.send({"type": "find"})
    assert socket.aborted == 1, "else all that comes after it would wait, too"
    await there.close()
    assert socket.aborted == 2


@simulated
async def test_a_goodbye_that_is_given_up_ends_the_connection() -> None:
    there, socket = stuck()
    closing = asyncio.create_task(there.close())
    await asyncio.sleep(1.0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert socket.aborted == 1
