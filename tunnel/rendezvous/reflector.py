# SPDX-License-Identifier: GPL-2.0-or-later
"""UDP reflectors: tell the sender of a request its address and port. They keep nothing and amplify nothing."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from tunnel.candidates import reflection
from tunnel.rendezvous.limits import Buckets, Limits, bind, family_of, group


class Reflector(asyncio.DatagramProtocol):
    """One UDP socket. Anything but a request, and a request too many, gets no answer."""

    def __init__(self, limits: Limits) -> None:
        self._buckets = Buckets(limits.reflections, limits.addresses)
        self._transport: Any = None  # typeshed lacks get_write_buffer_size
        self.port = 0

    @classmethod
    async def serve(cls, address: str, port: int, limits: Limits) -> Reflector:
        """Answer there; `port` 0 takes a free one. Raises OSError."""
        sock = socket.socket(family_of(address), socket.SOCK_DGRAM)
        try:
            bind(sock, address, port)
            sock.setblocking(False)
            _, protocol = await asyncio.get_running_loop().create_datagram_endpoint(lambda: cls(limits), sock=sock)
        except BaseException:
            sock.close()
            raise
        protocol.port = sock.getsockname()[1]
        return protocol

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, address: tuple[Any, ...]) -> None:
        nonce = reflection.asked(data)
        if nonce is None or not self._transport or not self._buckets.take(group(address[0])):
            return
        if self._transport.get_write_buffer_size() == 0:  # otherwise the network is slower than the requests
            self._transport.sendto(reflection.answer(nonce, address[0], address[1]), address)

    def error_received(self, error: Exception) -> None:
        """ICMP has reported that an answer did not arrive."""

    def close(self) -> None:
        """Stop answering; safe to repeat."""
        if self._transport:
            self._transport.close()
