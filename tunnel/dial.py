# SPDX-License-Identifier: GPL-2.0-or-later
"""The TCP connection to a rendezvous."""

from __future__ import annotations

import asyncio
import socket

from tunnel.config import Server


async def connected(server: Server) -> socket.socket:
    """A connection to the first of the server's addresses that takes one, non-blocking; raises OSError."""
    failed = OSError("it has no address")
    for family, kind, _, _, address in await _addresses(server):
        try:
            return await _connected(family, kind, address)
        except OSError as error:
            failed = error
    raise failed


async def _addresses(server: Server) -> list[tuple[socket.AddressFamily, socket.SocketKind, int, str, tuple[str, int]]]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)
    except UnicodeError:  # of IDNA: two dots in a row, a part of more than 63 letters
        raise OSError("its host is not a name") from None
    return found  # type: ignore[return-value]


async def _connected(family: int, kind: int, address: tuple[str, int]) -> socket.socket:
    sock = socket.socket(family, kind)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock
