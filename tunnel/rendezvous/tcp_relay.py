# SPDX-License-Identifier: GPL-2.0-or-later
"""The relay's TCP side, for ends whose network lets no UDP out: each datagram after its length, over TLS.

TLS adds nothing to WireGuard's own encryption; it is what a firewall expects to see.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Sequence

from migrator.base.clock import now
from migrator.base.strict_json import Malformed
from tunnel import gso
from tunnel.relay import relay_messages as wire
from tunnel.rendezvous.forwarder import Forwarder
from tunnel.rendezvous.limits import Buckets, Calls, Door, GuardedListener
from tunnel.rendezvous.pairs import End

QUEUE = 256 * 1024  # bytes queued for one slow end; beyond that datagrams are dropped, as on any full link
JOINS = 15  # messages of ours on one connection; an end needs two, and two more if its cookie has just expired


class TcpRelay:
    """Listens for ends that connect by TCP."""

    def __init__(self, relay: Forwarder) -> None:
        self.port = 0
        self._relay = relay
        limits = relay.limits
        self.door = Door(limits.connections, limits.connections_per_address, Buckets(limits.connects, limits.addresses))
        self._servers: list[asyncio.Server] = []
        self.connections: set[_Connection] = set()

    @classmethod
    async def serve(cls, relay: Forwarder, hosts: Sequence[str], port: int, tls: ssl.SSLContext | None) -> TcpRelay:
        """Listen on these addresses; raises OSError."""
        made = cls(relay)
        loop = asyncio.get_running_loop()
        for host in hosts:
            # Counted from there on: a client that never completes TLS is never heard of below.
            listener = GuardedListener.open(host, made.port or port, made.door)
            limit = relay.limits.handshake if tls else None
            server = await loop.create_server(
                lambda: _Connection(relay, made), sock=listener, ssl=tls, ssl_handshake_timeout=limit,
                ssl_shutdown_timeout=limit)
            made._servers.append(server)
            made.port = server.sockets[0].getsockname()[1]
        return made

    async def close(self) -> None:
        """Stop listening and end every connection."""
        for server in self._servers:
            server.close()
        for connection in list(self.connections):
            connection.abort()
        self._servers.clear()


class _Connection(asyncio.Protocol):
    """One end's connection."""

    def __init__(self, relay: Forwarder, all_: TcpRelay) -> None:
        self.end: End | None = None
        self._relay = relay
        self._all = all_
        self._rest = bytearray()
        self._joins = 0
        self._calls = Calls(now)
        self._waits = bytearray()  # until the end of this iteration of the loop
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._address = ("", 0)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101
        self._transport = transport
        self._address = transport.get_extra_info("peername")[:2]
        self._all.connections.add(self)
        with contextlib.suppress(OSError):
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._timer = self._loop.call_later(self._relay.limits.joining, self.abort)

    def connection_lost(self, _error: Exception | None) -> None:
        self._all.connections.discard(self)
        if self._timer:
            self._timer.cancel()
        if self.end:
            self._relay.pairs.gone(self.end)
        self._transport = None

    def abort(self) -> None:
        """End the connection at once."""
        if self._transport:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._rest:
            self._rest += data
            data = bytes(self._rest)
        try:
            found, used = wire.frames(data, wire.SHORTEST)
        except Malformed:
            self.abort()
            return
        self._rest = bytearray(data[used:])
        if self.end is None:
            for each in found:
                if not self._before_join(bytes(each)):
                    self.abort()
                    return
            return
        runs = gso.runs(found)
        allowed = self._calls.cut(runs, len(data))
        self._relay.dropped += len(runs) - len(allowed)
        for batch, size in allowed:
            if batch[:4] == wire.MAGIC:  # by TCP an end joins once, and leaves by closing the connection
                self.abort()
                return
            self._relay.forward(self.end, batch, size)

    def _before_join(self, message: bytes) -> bool:
        """Answer a JOIN; False if the connection is to be ended."""
        self._joins += 1
        if self.end or self._joins > JOINS:
            return False
        said = self._relay.answer(message, self._address, self, self.send)
        if said is None:
            return False
        answer, end = said
        self._write(wire.framed(answer))
        if end:
            self.end = end
            if self._timer:
                self._timer.cancel()
        return True

    def send(self, data: memoryview, segment: int) -> None:
        """Queue datagrams for this end; called from the UDP thread too."""
        framed = wire.framed(data, segment)
        if threading.get_ident() == self._thread:
            self._write(framed)
        else:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._write, framed)

    def _write(self, framed: bytes) -> None:
        if self._transport is None:
            return
        if self._transport.get_write_buffer_size() + len(self._waits) > QUEUE:
            self._relay.dropped += 1
            return
        if not self._waits:
            self._loop.call_soon(self._flush)
        self._waits += framed

    def _flush(self) -> None:
        """Pass on at once what has arrived in one iteration: TLS costs more per call than per byte."""
        data, self._waits = self._waits, bytearray()
        if self._transport:
            self._transport.write(data)
