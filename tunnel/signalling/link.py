# SPDX-License-Identifier: GPL-2.0-or-later
"""One WebSocket to a rendezvous: TLS, the pinned certificate, and messages that are JSON objects.

What both ends must agree on is here too: the version, the sizes, and what a peer signs to present itself.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import ipaddress
import ssl
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.connection import Connection
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.frames import Frame
from websockets.protocol import Event, State

from migrator.base import printable, strict_json
from migrator.base.clock import now
from migrator.base.strict_json import Malformed
from tunnel.identity import tunnel_config
from tunnel.identity.tunnel_config import Server
from tunnel.metered_tls import FROM_SERVERS, MeteredContext, MeteredObject
from tunnel.rendezvous.limits import Bucket, Rate
from tunnel.signalling import dial
from tunnel.tunnel_errors import RendezvousUnavailable

VERSION = 1
DATA_MAX = 16 * 1024  # bytes that one peer may send another in a message
MESSAGE_MAX = 24 * 1024  # bytes of a message with such data in base64
CHALLENGE_SIZE = 32  # bytes
REFLECTORS_MAX = 8
UNREAD_MAX = 256 * 1024  # bytes buffered for a server; in normal operation these are a few messages
OPENING_MAX = 64 * 1024  # bytes of a server's HTTP answer: a page that says what is wrong, if it is not a rendezvous
SLICE = 4096  # bytes that are parsed before the limits are checked
FRAMES = Rate(100, 400)  # from a server: many may ring at once, each address twice a second
SEND_LIMIT = 5.0  # seconds until a server has taken enough of a message
CLOSE_LIMIT = 2.0  # seconds for its goodbye
KEEPALIVE = 20.0  # seconds between pings: less than the half minute after which small routers forget
REPLACED = "the same identity waits over a newer connection"  # the reason of a refusal
TAKES_NO_MORE = "the peer takes no more"  # the reason of a refusal, too: not now, and not in this way
NOT_PINNED = "its certificate is not the pinned one: it was replaced, or this is another server"
ID_HEX = 64  # characters of an identity's id


def statement(challenge: bytes, certificate: bytes) -> bytes:
    """What a peer signs to present itself: valid only for this connection to the owner of this certificate."""
    return b"migrator present 1\0" + challenge + certificate


@dataclasses.dataclass(frozen=True)
class ServerInfo:
    """What a rendezvous says about itself: where its reflectors are (host, UDP port), and whether it has a relay."""

    reflectors: tuple[tuple[str, int], ...]
    relay: bool


class Guarded(Connection):
    """A connection whose other end can neither fill the memory nor keep everybody else waiting."""

    unread_max = UNREAD_MAX
    opening_max = OPENING_MAX
    frames = FRAMES

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._bucket = Bucket(self.frames, now)
        self._opening = self.opening_max
        self._ended = False
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """End it once too much is buffered for the other end, or has come from there.

        The library answers each ping, however many of its answers are buffered already. If the other end sends pings
        and reads nothing, the library's keepalive, which has to send a ping as well, blocks too. It parses everything
        that it is given, and what TLS has read at once may be 100,000 frames. And it keeps the headers, which may be a
        megabyte.
        """
        for start in range(0, len(data), SLICE):
            part = data[start : start + SLICE]
            if self.protocol.state is State.CONNECTING:
                self._opening -= len(part)
            if self._opening < 0:
                self._end()
            if self._ended:
                return
            super().data_received(part)
            if self.transport.get_write_buffer_size() > self.unread_max:
                self._end()

    def process_event(self, event: Event) -> None:
        """End it when frames come too fast, including pings and pongs, which are not messages and counted nowhere else.

        Also end it at a fragmented message, since none of ours are, and there may be fragments without end.
        """
        if isinstance(event, Frame) and not self._ended and not (event.fin and self._bucket.take()):
            self._end()
        if not self._ended:
            super().process_event(event)

    def _end(self) -> None:
        # Nothing is read from then on. The transport's own state will not do: it is also closing when the other end's
        # goodbye has been answered, and what came before that still counts.
        self._ended = True
        self.transport.abort()


class _Connection(Guarded, ClientConnection):
    pass


class _Connect(connect):
    """A connection to exactly this server. By default the library follows redirects, to wherever they lead.

    It does not do so for a socket that it was given, either; but what it says then is not meant for users.
    """

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


class Link:
    """A connection that has been greeted. Every failure of it is RendezvousUnavailable."""

    def __init__(self, server: Server, socket: ClientConnection, certificate: bytes, address: str) -> None:
        self.server = server
        self.certificate = certificate
        self.address = address  # of the server, as this host sees it
        self.challenge = b""
        self.info = ServerInfo((), relay=False)
        self._socket = socket

    @classmethod
    async def open(cls, server: Server, timeout: float) -> Link:
        """Connect within `timeout` seconds; raises RendezvousUnavailable."""
        try:
            async with asyncio.timeout(timeout):
                return await cls._open(server)
        except (OSError, WebSocketException, ValueError) as error:  # TimeoutError is an OSError
            raise unavailable(server, _reason(error, timeout)) from error

    @classmethod
    async def _open(cls, server: Server) -> Link:
        dialled = await dial.connected(server)
        try:
            address = str(dialled.getpeername()[0])  # no longer available once the connection has ended
        except OSError:
            dialled.close()
            raise
        socket = await _Connect(
            f"wss://{_bracketed(server.host)}:{server.port}/", ssl=_context(server), sock=dialled,
            compression=None, proxy=None, max_size=MESSAGE_MAX, max_queue=16, user_agent_header=None,
            ping_interval=KEEPALIVE, ping_timeout=KEEPALIVE, close_timeout=CLOSE_LIMIT, open_timeout=None,
            create_connection=_Connection,
        )
        try:
            # Nothing has been said yet except the WebSocket's own opening.
            link = cls(server, socket, _certificate(socket, server), address)
            link._greet(await link.receive())
        except BaseException:
            await _end(socket)
            raise
        return link

    def _greet(self, hello: dict[str, Any]) -> None:
        if hello.get("type") != "hello" or hello.get("version") != VERSION:
            raise unavailable(self.server, f"it does not speak version {VERSION}")
        try:
            self.challenge = strict_json.exactly(hello, "challenge", CHALLENGE_SIZE)
            found = [_reflector(item, self.address) for item in strict_json.items(hello, "reflectors", REFLECTORS_MAX)]
            self.info = ServerInfo(tuple(found), relay=hello.get("relay") is True)
        except Malformed as error:
            raise unavailable(self.server, f"its greeting is malformed: {error}") from None

    async def send(self, message: dict[str, Any]) -> None:
        """Send a message; raises RendezvousUnavailable."""
        try:
            async with asyncio.timeout(SEND_LIMIT):
                await self._socket.send(strict_json.dump(message).decode())
        except TimeoutError as error:
            self._socket.transport.abort()
            raise unavailable(self.server, f"it has accepted nothing for {SEND_LIMIT:g} seconds") from error
        except (OSError, WebSocketException) as error:
            raise unavailable(self.server, _reason(error)) from error

    async def receive(self, timeout: float | None = None) -> dict[str, Any]:
        """The next message; raises RendezvousUnavailable at the end, and also after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                return strict_json.load(await self._socket.recv(), MESSAGE_MAX)
        except (OSError, WebSocketException) as error:  # TimeoutError is an OSError
            raise unavailable(self.server, _reason(error, timeout or 0)) from error
        except Malformed as error:
            raise unavailable(self.server, f"it sent something invalid: {error}") from None

    async def close(self) -> None:
        """End the connection; safe to repeat."""
        await _end(self._socket)


async def _end(socket: ClientConnection) -> None:
    """In order, if the other end allows it: one that reads nothing may not even accept the packet that says so."""
    try:
        async with asyncio.timeout(CLOSE_LIMIT):
            await socket.close()
    except BaseException as error:
        socket.transport.abort()
        if not isinstance(error, TimeoutError):
            raise


def unavailable(server: Server | str, reason: str) -> RendezvousUnavailable:
    """The error for a failure of a server."""
    return RendezvousUnavailable(reason=f"{server}: {reason}", config=tunnel_config.PATH)


def _reflector(item: Any, address: str) -> tuple[str, int]:
    """A reflector's address and port; an empty address stands for the one at which the server was reached."""
    if not isinstance(item, dict):
        raise Malformed("a reflector is not an object")
    host, port = strict_json.text(item, "host", 45) or address, strict_json.integer(item, "port", 1, 65535)
    try:
        found = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        raise Malformed("a reflector's host is not an address") from None
    # A server elsewhere has no business with what only this host and its neighbours can reach.
    near = found.is_link_local or (found.is_loopback and not ipaddress.ip_address(address).is_loopback)
    if host != address and ("%" in host or near or found.is_multicast or found.is_unspecified):
        raise Malformed("a reflector's address is not one of a host")
    return host, port


class _PinnedObject(MeteredObject):
    """TLS whose handshake fails unless the pinned certificate is shown: nothing is sent to any other server."""

    def do_handshake(self) -> None:
        super().do_handshake()
        assert isinstance(self.context, _PinnedContext)  # noqa: S101
        if hashlib.sha256(self.getpeercert(binary_form=True) or b"").digest() != self.context.pin:
            raise ssl.SSLError(1, NOT_PINNED)


class _PinnedContext(MeteredContext):
    """A context in which the pin decides, and nothing else."""

    sslobject_class = _PinnedObject
    pin = b""


def _context(server: Server) -> ssl.SSLContext:
    context: MeteredContext
    if server.pin:
        context = _PinnedContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.pin = server.pin
    else:
        context = MeteredContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_default_certs()
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.allowance = FROM_SERVERS
    return context


def _certificate(socket: ClientConnection, server: Server) -> bytes:
    """SHA-256 of the certificate that the server has presented."""
    shown: bytes = socket.transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
    found = hashlib.sha256(shown).digest()
    if server.pin and found != server.pin:  # the handshake has checked already; everything else depends on it
        raise unavailable(server, NOT_PINNED)
    return found


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _reason(error: BaseException, timeout: float = 0) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout:g} seconds" if timeout else "no answer"
    if isinstance(error, InvalidStatus) and (where := error.response.headers.get_all("Location")):
        return f"it redirects to {printable.line(where[0][:100])}, which is not followed; is its URL wrong?"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message}); is the #sha256: of its URL missing?"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200] or type(error).__name__
