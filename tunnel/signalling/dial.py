# SPDX-License-Identifier: GPL-2.0-or-later
"""The TCP connection to a rendezvous, and where a paired peer cannot have this host connect to.

A peer says where it can be rung, and this host goes there again and again, as root. What its own user has named in
/etc/migrator/tunnel.conf, or on a command line, may be anywhere.
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
    """A connection to the first of the server's addresses that takes one, non-blocking; raises OSError.

    Of a server that a peer has named only the first that it can name is tried. If another was, whoever owns the name
    would see there whether the first had taken the connection, and so what listens on hosts that this one reaches.
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
    """Why this host does not connect to a server at that address, which its name means just now; "" if it does.

    Into a private network a peer leads by the address itself only. What a name means its owner can change at any time,
    to one address of this host's network after the other.
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

    What no candidate can be it is not either (see `candidate.probable`: loopback and link-local, cloud metadata among
    them). A private network can be reached from such networks only. A rendezvous has the usual port, or none of a
    service that the host's root alone could start.
    """
    if (port < candidate.PORT_MIN and port != tunnel_config.PORT) or not candidate.probable(address):
        return False
    return not candidate.private(address) or (source is not None and candidate.private(source))


async def _addresses(server: Server) -> lookup.Found:
    try:
        try:
            # An address needs no thread, and waits for no name.
            found: lookup.Found = socket.getaddrinfo(server.host, None, type=socket.SOCK_STREAM,
                                                     flags=socket.AI_NUMERICHOST)
        except socket.gaierror:
            found = await lookup.addresses(server.host, by_peer=server.by_peer)
    except UnicodeError:  # of IDNA: two dots in a row, a part of more than 63 letters
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
