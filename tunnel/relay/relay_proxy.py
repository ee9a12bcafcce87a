# SPDX-License-Identifier: GPL-2.0-or-later
"""The way to a relay by TCP, and the local proxy through which WireGuard uses it.

WireGuard uses UDP only: its endpoint becomes a socket on 127.0.0.1, whose datagrams go to the relay, each prefixed with
its length, over TLS, which is what firewalls that let no UDP out expect to see. WireGuard's packets are encrypted
already, so without a pin the certificate is not checked: there is nothing that its owner could learn or change.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import ssl
from collections.abc import Callable

from migrator.base.clock import now
from tunnel import gso, metered_tls
from tunnel.candidates.nat import Endpoint
from tunnel.relay import relay_messages
from tunnel.relay.relay_client import Joining, RelayToken
from tunnel.relay.relay_messages import Type
from tunnel.rendezvous.limits import Calls

QUEUE = 1024 * 1024  # bytes queued for the relay; beyond that datagrams are dropped, as on any full link
READS = 32  # calls before others have their turn


class TcpPath(asyncio.Protocol):
    """A connection to a relay that has been joined. Datagrams go to `on_datagram` until `proxy`, then to WireGuard."""

    def __init__(self, token: RelayToken, on_datagram: Callable[[bytes], None]) -> None:
        self.closed = asyncio.get_running_loop().create_future()
        self.dropped = 0
        self._token = token
        self._calls = Calls(now)
        self._joining = Joining(token)
        self._joined: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._on_datagram = on_datagram
        self._transport: asyncio.Transport | None = None
        self._rest = b""
        self._local: socket.socket | None = None
        self._wireguard: Endpoint | None = None
        self._buffer = bytearray(gso.BATCH)

    @classmethod
    async def open(cls, token: RelayToken, on_datagram: Callable[[bytes], None], timeout: float) -> TcpPath:
        """Connect and join; raises OSError (TimeoutError included)."""
        context = metered_tls.context(ssl.PROTOCOL_TLS_CLIENT, metered_tls.FROM_RELAYS)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        loop = asyncio.get_running_loop()
        made: TcpPath | None = None
        try:
            async with asyncio.timeout(timeout):
                _, made = await loop.create_connection(
                    lambda: cls(token, on_datagram), token.host, token.tcp_port, ssl=context
                )
                made._check_pin()
                made._join()
                await asyncio.shield(made._joined)
        except BaseException:
            if made:
                made.close()
            raise
        return made

    def _check_pin(self) -> None:
        assert self._transport is not None  # noqa: S101
        shown = self._transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
        if self._token.pin and hashlib.sha256(shown).digest() != self._token.pin:
            raise ConnectionError("the relay's certificate is not the pinned one")

    def _join(self) -> None:
        self.send(self._joining.datagram(now()))

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101
        self._transport = transport
        with contextlib.suppress(OSError):
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if not self._joined.done():
            self._joined.set_exception(error or ConnectionError("the relay ended the connection"))
            self._joined.exception()  # whoever opened it may have gone
        if not self.closed.done():
            self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        found, used = relay_messages.frames(self._rest + data if self._rest else data)
        self._rest = (self._rest + data)[used:]
        # A datagram too short to be anything costs one call, and 100,000 of them may arrive at once.
        found = [each for each in found if len(each) >= relay_messages.SHORTEST]
        if self._wireguard and self._local:
            runs = gso.runs(found)
            allowed = self._calls.cut(runs, len(data))
            self.dropped += len(runs) - len(allowed)
            for batch, size in allowed:
                gso.send(self._local, batch, size, self._wireguard)
            return
        for each in found:
            self._before_wireguard(bytes(each))

    def _before_wireguard(self, data: bytes) -> None:
        answer = self._joining.received(data, now())
        if answer is None:
            if self._joining.joined:
                self._on_datagram(data)
        elif answer.type is Type.CHALLENGE:
            self._join()
        elif not self._joined.done():
            if answer.type is Type.JOINED:
                self._joined.set_result(None)
            else:
                self._joined.set_exception(ConnectionError(self._joining.refused or "the relay refused"))

    # --- Use ---

    def send(self, data: bytes) -> None:
        """Send one datagram."""
        if self._transport:
            self._transport.write(relay_messages.framed(data))

    def proxy(self, wireguard_port: int) -> Endpoint:
        """From now on carry datagrams between the relay and WireGuard on this port; returns WireGuard's endpoint."""
        self._local = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._local.bind(("127.0.0.1", 0))
        self._local.setblocking(False)
        gso.enlarge(self._local)
        self._wireguard = ("127.0.0.1", wireguard_port)
        asyncio.get_running_loop().add_reader(self._local.fileno(), self._from_wireguard)
        address, port = self._local.getsockname()
        return address, port

    def _from_wireguard(self) -> None:
        for _ in range(READS):
            if self._local is None:
                return
            try:
                size, segment, sender = gso.receive(self._local, self._buffer)
            except BlockingIOError:
                return
            except OSError:
                continue
            if sender != self._wireguard or self._transport is None:
                continue  # any local user can reach this port
            if self._transport.get_write_buffer_size() > QUEUE:
                self.dropped += 1
                continue
            self._transport.write(relay_messages.framed(memoryview(self._buffer)[:size], segment))

    def close(self) -> None:
        """Close connection and proxy; safe to repeat."""
        if self._local:
            asyncio.get_running_loop().remove_reader(self._local.fileno())
            self._local.close()
            self._local = None
        if self._transport:
            self._transport.abort()
