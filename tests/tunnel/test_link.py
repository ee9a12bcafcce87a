# SPDX-License-Identifier: GPL-2.0-or-later
"""How a rendezvous is connected to: where a server, or somebody on the way to it, cannot send this host."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator

import pytest

from tests.tunnel.clock import eventually, standing
from tests.tunnel.serving import LOOPBACK, serving
from tunnel import link
from tunnel.config import Server
from tunnel.errors import RendezvousUnavailable
from tunnel.link import Link
from tunnel.rendezvous.certificate import Certificate


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
    monkeypatch.setattr(link._PinnedContext, "sslobject_class", ssl.SSLObject)
    async with serving() as there:
        wrong = Server.parse(f"wss://{LOOPBACK}:{there.running.ports[0]}#sha256:{'0' * 64}")
        with pytest.raises(RendezvousUnavailable, match="not the pinned one"):
            await Link.open(wrong, 5)
