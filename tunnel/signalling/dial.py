# SPDX-License-Identifier: GPL-2.0-or-later
"""The TCP connection to a rendezvous, and addresses to which a paired peer cannot make this host connect.

A peer states where it can be rung, and this host connects there over and over, as root. Servers that its own user has
named in /etc/migrator/tunnel.conf, or on a command line, may be anywhere.
"""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

from tunnel.candidates import candidate
from tunnel.identity import tunnel_config
from tunnel.identity.tunnel_config import Server
from tunnel.signalling import lookup


async def connected(server: Server) -> socket.socket:
    """A connection to the first of the server's addresses that accepts one, non-blocking; raises OSError.

    For a server that a peer has named, only the first permitted address is tried. If another one were tried, the owner
    of the name would see there whether the first had accepted the connection, and so learn what listens on hosts that
    this one can reach.
    """
    failed = OSError("it has no address")
    found = await _addresses(server)
    for family, kind, _, _, address in found:
        if why := why_not(server, address[0]):
            failed = OSError(why)
            continue
        try:
            return await _connected(family, kind, address)
        except OSError as error:
            failed = error
            if server.by_peer and len(found) > 1:
                why = os.strerror(error.errno) if error.errno else str(error)
                raise OSError(f"{why} (at {address[0]}; as a peer has named it, no other is tried)") from error
    raise failed


def why_not(server: Server, address: str) -> str:
    """Why this host does not connect to a server at that address, to which its name resolves now; "" if it does.

    A peer can lead into a private network only by an address, not by a name: the owner of a name can change what it
    resolves to at any time, to one address in this host's network after another.
    """
    if not server.by_peer:
        return ""
    if candidate.private(address):
        can = server.host == address and can_be_named(address, server.port, candidate.source_towards(address))
    else:
        can = can_be_named(address, server.port, None)
    return "" if can else (f"a peer has named it, and {address}, port {server.port}, is one that it may not name"
                           f"{'' if server.host == address else ' so'}; to use it, add its URL to servers")


def can_be_named(address: str, port: int, source: str | None) -> bool:
    """Whether a peer can name such a rendezvous to this host, which would connect there from its address `source`.

    An address that cannot be a candidate cannot be one of these either (see `candidate.probable`: this excludes
    loopback, link-local and cloud metadata). A private network can be reached only from such networks. A rendezvous has
    the usual port, or one that does not belong to a service that only root could start.
    """
    if (port < candidate.PORT_MIN and port != tunnel_config.PORT) or not candidate.probable(address):
        return False
    return not candidate.private(address) or (source is not None and candidate.private(source))


async def _addresses(server: Server) -> lookup.Found:
    try:
        try:
            # An address needs no thread, and no name server is waited for.
            found: lookup.Found = socket.getaddrinfo(server.host, None, type=socket.SOCK_STREAM,
                                                     flags=socket.AI_NUMERICHOST)
        except socket.gaierror:
            found = await lookup.addresses(server.host, by_peer=server.by_peer)
    except UnicodeError:  # from IDNA: two dots in a row, a label of more than 63 letters
        raise OSError("its host is not a name") from None
    return [(*each[:4], (each[4][0], server.port, *each[4][2:])) for each in found]


async def _connected(family: int, kind: int, address: tuple[Any, ...]) -> socket.socket:
    sock = socket.socket(family, kind)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock
