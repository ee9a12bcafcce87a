# SPDX-License-Identifier: GPL-2.0-or-later
"""A TCP connection inside the tunnel to what the responder serves, for a client that knows the session's secret.

Any user of the initiator's host can connect there, and one on the responder's host may listen there first. So both
sides prove, each with a MAC over both sides' random bytes, that they know the secret, before a byte of anything else is
read:

| step | from      | bytes                                                         |
| ---- | --------- | ------------------------------------------------------------- |
| 1    | responder | `MGT1`, 32 random bytes                                       |
| 2    | initiator | purpose u8, 32 random bytes, HMAC over "i", purpose and both  |
| 3    | responder | HMAC over "r", purpose and both                               |

The HMACs are HMAC-SHA256 under the secret. Afterwards the stream is the purpose's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import errno
import hashlib
import hmac
import secrets
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from tunnel.session.channel import Tell
from tunnel.session.live_tunnel import Tunnel
from tunnel.session.setup import quiet
from tunnel.tunnel_errors import TunnelBroken

TIMEOUT = 10.0  # seconds to connect, and for each side's proof
UNPROVED_MAX = 8  # connections that have not proved anything yet
ACCEPT_PAUSE = 1.0  # seconds until the next try if this process is out of descriptors

_LISTENS_NO_MORE = (errno.EBADF, errno.EINVAL, errno.ENOTSOCK)  # all other errors of accept(2) are temporary
_TCP_RTO_MAX_MS = 44  # linux/tcp.h, since Linux 6.15
_GIVE_UP = 600  # seconds
_MAGIC = b"MGT1"
_NONCE_SIZE = 32
_MAC_SIZE = 32


class Purpose(enum.IntEnum):
    """What a connection is for."""

    MIGRATE = 1
    BENCH = 2


# Is given a connection that has proved itself, and owns it; it is a blocking socket.
Serve = Callable[[Purpose, socket.socket], Awaitable[None]]


def _proof(secret: bytes, side: bytes, purpose: int, ours: bytes, theirs: bytes) -> bytes:
    return hmac.digest(secret, side + bytes([purpose]) + ours + theirs, hashlib.sha256)


async def listen(tunnel: Tunnel, serve: Serve, debug: Tell = quiet) -> None:
    """Accept connections on the tunnel address, until cancelled; raises OSError where it cannot listen."""
    sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    tasks: set[asyncio.Task[None]] = set()
    unproved = asyncio.Semaphore(UNPROVED_MAX)
    try:
        sock.setblocking(False)
        sock.bind((tunnel.local_address, tunnel.port))
        sock.listen(UNPROVED_MAX)
        while True:
            await unproved.acquire()
            connection, peer = await _accept(sock, debug)
            if peer[0] != tunnel.remote_address:
                # The firewall lets nobody else in.
                connection.close()
                unproved.release()
                continue
            task = asyncio.create_task(_accepted(connection, tunnel.secret, serve, unproved))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
    finally:
        sock.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _accept(sock: socket.socket, debug: Tell) -> tuple[socket.socket, Any]:
    """The next connection. If none can be accepted now, it waits in the kernel and the session stays up."""
    told = False
    while True:
        try:
            return await asyncio.get_running_loop().sock_accept(sock)
        except OSError as error:
            if error.errno in _LISTENS_NO_MORE:
                raise
            if not told:
                debug(f"a connection through the tunnel has to wait: {error}")
                told = True
            await asyncio.sleep(ACCEPT_PAUSE)


async def _accepted(connection: socket.socket, secret: bytes, serve: Serve, unproved: asyncio.Semaphore) -> None:
    try:
        connection.setblocking(False)
        try:
            async with asyncio.timeout(TIMEOUT):
                purpose = await _let_prove(connection, secret)
        finally:
            unproved.release()
        connection.setblocking(True)
    except (OSError, ValueError, EOFError):
        connection.close()
        return
    except BaseException:
        connection.close()
        raise
    await serve(purpose, connection)


async def _let_prove(connection: socket.socket, secret: bytes) -> Purpose:
    """The responder's side; raises ValueError for a wrong proof."""
    loop = asyncio.get_running_loop()
    ours = secrets.token_bytes(_NONCE_SIZE)
    await loop.sock_sendall(connection, _MAGIC + ours)
    said = await _exactly(connection, 1 + _NONCE_SIZE + _MAC_SIZE)
    purpose, theirs, proof = said[0], said[1 : 1 + _NONCE_SIZE], said[1 + _NONCE_SIZE :]
    if not hmac.compare_digest(proof, _proof(secret, b"i", purpose, theirs, ours)):
        raise ValueError("it does not know the secret")
    found = Purpose(purpose)
    await loop.sock_sendall(connection, _proof(secret, b"r", purpose, ours, theirs))
    return found


async def connect(tunnel: Tunnel, purpose: Purpose) -> socket.socket:
    """A connection on which both sides have proved themselves, blocking from now on; raises TunnelBroken."""
    sock: socket.socket | None = None
    try:
        async with asyncio.timeout(TIMEOUT):
            while (sock := await _connected(tunnel)) is None:
                await asyncio.sleep(0.02)  # the responder may need a moment longer until it listens
            await _prove(sock, tunnel.secret, purpose)
        sock.setblocking(True)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _retry_soon(sock)
    except BaseException as error:
        if sock:
            sock.close()
        if isinstance(error, (OSError, ValueError, EOFError)):
            reason = "no answer from its service" if isinstance(error, TimeoutError) else str(error)
            raise TunnelBroken(name=tunnel.peer.name, reason=reason) from error
        raise
    return sock


def _retry_soon(sock: socket.socket) -> None:
    """Retransmit every second what was lost: a path that was healed after half a minute is used at once.

    Otherwise TCP waits for as long again as the path was dead. Older kernels do not support this.
    """
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_RTO_MAX_MS, 1000)
        # The kernel would give up after a number of tries, not after a time; giving up is up to the tunnel's watch.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _GIVE_UP * 1000)


async def _connected(tunnel: Tunnel) -> socket.socket | None:
    """A connection; None if nobody listens. Each try has a socket of its own: one that was refused cannot be reused."""
    sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.bind((tunnel.local_address, 0))
        await asyncio.get_running_loop().sock_connect(sock, (tunnel.remote_address, tunnel.port))
    except ConnectionRefusedError:
        sock.close()
        return None
    except BaseException:
        sock.close()
        raise
    return sock


async def _prove(sock: socket.socket, secret: bytes, purpose: Purpose) -> None:
    """The initiator's side; raises ValueError for a wrong proof."""
    hello = await _exactly(sock, len(_MAGIC) + _NONCE_SIZE)
    if not hello.startswith(_MAGIC):
        raise ValueError("what answers there is not the peer's service")
    theirs, ours = hello[len(_MAGIC) :], secrets.token_bytes(_NONCE_SIZE)
    said = bytes([purpose]) + ours + _proof(secret, b"i", purpose, ours, theirs)
    await asyncio.get_running_loop().sock_sendall(sock, said)
    if not hmac.compare_digest(await _exactly(sock, _MAC_SIZE), _proof(secret, b"r", purpose, theirs, ours)):
        raise ValueError("what answers there does not know the session's secret")


async def _exactly(sock: socket.socket, size: int) -> bytes:
    loop, found = asyncio.get_running_loop(), b""
    while len(found) < size:
        data = await loop.sock_recv(sock, size - len(found))
        if not data:
            raise EOFError("the connection was ended")
        found += data
    return found
