# SPDX-License-Identifier: GPL-2.0-or-later
"""The signalling server: greets, checks who presents itself, passes messages on, and stores nothing."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from websockets.asyncio.server import Server as WebSocketServer
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from migrator.base import strict_json
from migrator.base.strict_json import Malformed
from tunnel.identity.own_identity import KEY_SIZE, SIGNATURE_SIZE, TEXT_SIZE, PublicIdentity
from tunnel.rendezvous.certificate import Certificate
from tunnel.rendezvous.limits import Buckets, Door, GuardedListener, Limits, Rate, group
from tunnel.rendezvous.lines import Line, Switchboard
from tunnel.rendezvous.meeting import Meetings
from tunnel.signalling.client import LINE_HEX
from tunnel.signalling.link import (
    CHALLENGE_SIZE,
    DATA_MAX,
    ID_HEX,
    KEEPALIVE,
    MESSAGE_MAX,
    TAKES_NO_MORE,
    VERSION,
    Guarded,
    statement,
)

if TYPE_CHECKING:
    from tunnel.rendezvous.udp_relay import Relay

RELAY_SESSION_SIZE = 16  # bytes
UNREAD_MAX = 64 * 1024  # bytes buffered for one connection below its queue: two messages, with what TLS adds
OPENING_MAX = 16 * 1024  # bytes of a request, with all its headers
FRAMES = Rate(20, 200)  # on one connection: twice the messages that a peer may send, so that it is told of too many
GOODBYE = 2.0  # seconds for each of WebSocket's and TLS' closing handshakes


class _Connection(Guarded, ServerConnection):
    unread_max = UNREAD_MAX
    opening_max = OPENING_MAX
    frames = FRAMES


class SignallingServer:
    """Answers on listening sockets; made by `serve`."""

    def __init__(self, certificate: Certificate, limits: Limits, reflectors: list[dict[str, Any]],
                 relay: Relay | None, relay_host: str, tell: Callable[[str], None]) -> None:
        self.door = Door(limits.connections, limits.connections_per_address, Buckets(limits.connects, limits.addresses))
        self._certificate = certificate
        self._limits = limits
        self._reflectors = reflectors
        self._relay = relay
        self._relay_host = relay_host
        self._tell = tell
        self._switchboard = Switchboard(limits)
        self._meetings = Meetings(limits)
        self._rings = Buckets(limits.rings, limits.addresses)
        self._servers: list[WebSocketServer] = []

    async def listen(self, address: str, port: int) -> int:
        """Answer there, too; returns the port, which was chosen if it was 0. Raises OSError."""
        listener = GuardedListener.open(address, port, self.door)
        self._servers.append(await serve(
            self._handle, sock=listener, ssl=self._certificate.context, ssl_handshake_timeout=self._limits.handshake,
            ssl_shutdown_timeout=GOODBYE, open_timeout=self._limits.greeting, compression=None, server_header=None,
            max_size=MESSAGE_MAX,
            # What has been read but not handled yet, per connection; and what TCP has not accepted yet.
            max_queue=4, write_limit=MESSAGE_MAX, ping_interval=KEEPALIVE, ping_timeout=KEEPALIVE,
            close_timeout=GOODBYE, logger=_silent(), create_connection=_Connection,
        ))
        return int(listener.getsockname()[1])

    async def close(self) -> None:
        """Say goodbye to everybody (WebSocket status 1001) and stop."""
        for server in self._servers:
            server.close()
        await asyncio.gather(*(server.wait_closed() for server in self._servers))

    async def _handle(self, socket: ServerConnection) -> None:
        if socket.request:
            socket.request.headers.clear()  # otherwise the library keeps them as long as the connection exists
        line = Line(socket, group(str(socket.remote_address[0])), self._limits)
        challenge = secrets.token_bytes(CHALLENGE_SIZE)
        line.put({"type": "hello", "version": VERSION, "challenge": strict_json.encode(challenge),
                  "reflectors": self._reflectors, "relay": self._relay is not None})
        try:
            async with asyncio.timeout(self._limits.greeting):
                first = strict_json.load(await socket.recv(), MESSAGE_MAX)
            if first.get("type") == "pair":
                await self._meetings.attend(line, first)
            else:
                await self._attend(line, first, challenge)
        except ConnectionClosed:
            pass
        except TimeoutError:
            line.end("it took too long to present itself")
        except Malformed as error:
            line.end(f"malformed message: {error}")
        except Exception as error:  # trouble with one connection must not become everybody's
            self._tell(f"internal error: {type(error).__name__}")
            line.end("internal error")
        finally:
            self._switchboard.remove(line)
            await line.close()

    async def _attend(self, line: Line, first: dict[str, Any], challenge: bytes) -> None:
        """Serve a peer until it leaves."""
        public = self._presented(first, challenge)
        if not self._switchboard.add(line, public.id, waits=first.get("waits") is True):
            line.end("too many connections of this identity")
            return
        line.put({"type": "welcome", "line": line.name})
        async for data in line.socket:
            if not line.bucket.take():
                line.end("too many messages")
                return
            message = strict_json.load(data, MESSAGE_MAX)
            ref = strict_json.integer(message, "ref", 1, 2**53)
            await line.answer({"type": "answer", "ref": ref} | self._answer(line, message))

    def _presented(self, message: dict[str, Any], challenge: bytes) -> PublicIdentity:
        if message.get("type") != "present":
            raise Malformed("expected: present")
        public = PublicIdentity.from_text(strict_json.text(message, "identity", TEXT_SIZE))
        signature = strict_json.exactly(message, "signature", SIGNATURE_SIZE)
        if not public.verify(signature, statement(challenge, self._certificate.sha256)):
            raise Malformed("the identity is not proved")
        return public

    def _answer(self, line: Line, message: dict[str, Any]) -> dict[str, Any]:
        to = _id(message)
        match message.get("type"):
            case "find":
                return {"ok": self._switchboard.waiting(to) is not None}
            case "send":
                return self._pass_on(line, to, message)
            case "token":
                return self._token(line, to, message)
        return {"ok": False, "reason": "unknown request"}

    def _pass_on(self, line: Line, to: bytes, message: dict[str, Any]) -> dict[str, Any]:
        data = strict_json.data(message, "data", DATA_MAX)
        if "line" in message:
            target = self._switchboard.line(to, strict_json.text(message, "line", LINE_HEX))
        elif not self._rings.take(line.address):
            return {"ok": False, "reason": "too many calls from this address"}
        else:
            target = self._switchboard.waiting(to)
        if not target:
            return {"ok": False, "reason": "absent"}
        sent = {"type": "message", "from": line.id.hex(), "line": line.name, "data": strict_json.encode(data)}
        # Without this, somebody with enough identities could make a peer end its own connection, as it accepts only
        # a limited number of frames.
        may = target.may_be_sent(line.address) if "line" in message else target.rings.take()
        if not may or not target.put(sent):
            return {"ok": False, "reason": TAKES_NO_MORE}
        return {"ok": True}

    def _token(self, line: Line, to: bytes, message: dict[str, Any]) -> dict[str, Any]:
        session = strict_json.exactly(message, "session", RELAY_SESSION_SIZE)
        if not self._relay:
            return {"ok": False, "reason": "no relay here"}
        claim, key = self._relay.token(session, line.id, to)
        return {"ok": True, "host": self._relay_host, "udp_port": self._relay.udp_port,
                "tcp_port": self._relay.tcp_port, "claim": strict_json.encode(claim), "key": strict_json.encode(key)}


def _silent() -> logging.Logger:
    """Keeps websockets from logging a traceback for everybody who makes a malformed request."""
    logger = logging.Logger("migrator.rendezvous")  # deliberately outside of the logger hierarchy
    logger.addHandler(logging.NullHandler())
    return logger


def _id(message: dict[str, Any]) -> bytes:
    try:
        found = bytes.fromhex(strict_json.text(message, "to", ID_HEX))
    except ValueError:
        raise Malformed("to is not an id") from None
    if len(found) != KEY_SIZE:
        raise Malformed("to is not an id")
    return found
