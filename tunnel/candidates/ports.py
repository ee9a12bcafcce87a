# SPDX-License-Identifier: GPL-2.0-or-later
"""The UDP sockets that a punch uses: one random port, over IPv4 and IPv6, and more for birthday probing."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import Callable
from typing import ClassVar

from tunnel.candidates.nat import Endpoint

LOW, HIGH = 32768, 65535
READS = 64  # datagrams read from one socket before others have their turn
DATAGRAM_MAX = 2048
AVOIDED = {51820}  # WireGuard's usual port: two hosts behind one NAT would collide on it

_INT = struct.Struct("=i")

# Called with the number of the socket (`via`), the sender and the datagram.
Receiver = Callable[[int, Endpoint, bytes], None]


class Ports:
    """Socket 0 is a pair (IPv4, IPv6) on one port, which WireGuard takes over; 1, 2, ... are for birthday probing."""

    _wide: ClassVar[Ports | None] = None  # whose sockets for birthday probing are open

    def __init__(self) -> None:
        self.receiver: Receiver | None = None
        self._sockets: list[socket.socket] = []
        self._ipv6: socket.socket | None = None

    @classmethod
    def open(cls, port: int = 0) -> Ports:
        """Take a random port, or the one given; raises OSError."""
        made = cls()
        made._sockets.append(made._ipv4_socket(port))
        with contextlib.suppress(OSError):  # no IPv6, or the port is taken there
            made._ipv6 = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            made._ipv6.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            made._ipv6.bind(("::", made.port()))
            made._watch(0, made._ipv6)
        made._watch(0, made._sockets[0])
        return made

    def _ipv4_socket(self, port: int = 0) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for attempt in range(100):
            with contextlib.suppress(OSError):
                sock.bind(("0.0.0.0", port or self._random_port()))  # noqa: S104  # reached through any interface
                return sock
            if port and not attempt:
                break
        sock.close()
        raise OSError(f"no free UDP port from {LOW} to {HIGH}" if not port else f"UDP port {port} is in use")

    @staticmethod
    def _random_port() -> int:
        while (port := random.randint(LOW, HIGH)) in AVOIDED:  # noqa: S311  # unpredictable enough for a port
            pass
        return port

    def _watch(self, via: int, sock: socket.socket) -> None:
        sock.setblocking(False)
        asyncio.get_running_loop().add_reader(sock.fileno(), self._read, via, sock)

    def port(self, via: int = 0) -> int:
        """The local port of a socket."""
        found: int = self._sockets[via].getsockname()[1]
        return found

    def more(self, count: int) -> int:
        """Open more sockets, on ports of their own; returns how many there are now besides socket 0.

        None while another session of this process has some: they are a quarter of the descriptors that a process
        usually may have, and peers decide how many sessions begin at a time.
        """
        if Ports._wide not in (None, self):
            return 0
        Ports._wide = self
        for _ in range(count):
            try:
                sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            except OSError:  # no more file descriptors: fewer then
                break
            sock.bind(("0.0.0.0", 0))  # noqa: S104
            self._sockets.append(sock)
            self._watch(len(self._sockets) - 1, sock)
        return len(self._sockets) - 1

    def send(self, via: int, to: Endpoint, data: bytes, ttl: int | None = None) -> bool:
        """Send a datagram; False if this host could not (no route, no IPv6, full)."""
        ipv6 = ":" in to[0]
        sock = self._ipv6 if ipv6 else self._sockets[via]
        if sock is None or (ipv6 and via):
            return False
        level, option = (socket.IPPROTO_IPV6, socket.IPV6_HOPLIMIT) if ipv6 else (socket.IPPROTO_IP, socket.IP_TTL)
        try:
            sock.sendmsg([data], [] if ttl is None else [(level, option, _INT.pack(ttl))], 0, to)
        except OSError:
            return False
        return True

    def _read(self, via: int, sock: socket.socket) -> None:
        for _ in range(READS):
            try:
                data, sender = sock.recvfrom(DATAGRAM_MAX)
            except BlockingIOError:
                return
            except OSError:
                continue
            if self.receiver:
                self.receiver(via, (sender[0], sender[1]), data)
            if sock.fileno() < 0:  # closed by the handler of the previous datagram
                return

    def close(self) -> None:
        """Close all sockets; safe to repeat."""
        if Ports._wide is self:
            Ports._wide = None
        sockets = [*self._sockets, *([self._ipv6] if self._ipv6 else [])]
        for sock in sockets:
            if sock.fileno() >= 0:
                asyncio.get_running_loop().remove_reader(sock.fileno())
                sock.close()
