# SPDX-License-Identifier: GPL-2.0-or-later
"""The relay with its sockets: UDP is forwarded by a thread of its own, many datagrams per call (udp(7): UDP_GRO,
UDP_SEGMENT); an end whose network lets no UDP out uses TCP instead (`tcp_relay`).
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from functools import partial

from migrator.base.clock import Clock
from tunnel import gso
from tunnel.relay import relay_messages as wire
from tunnel.rendezvous.forwarder import Forwarder
from tunnel.rendezvous.limits import bind, family_of
from tunnel.rendezvous.pairs import Limits
from tunnel.rendezvous.tcp_relay import TcpRelay

SWEEP = 5.0  # seconds between two checks for ends that are gone


class Relay(Forwarder):
    """A running relay. `serve` makes it; `token` and `close` may be called from the event loop's thread."""

    def __init__(self, limits: Limits | None = None, clock: Clock = time.monotonic, wall: Clock = time.time) -> None:
        super().__init__(limits, clock, wall)
        self.udp_port = 0
        self.tcp_port = 0
        self._udp: list[socket.socket] = []
        self._tcp: TcpRelay | None = None
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread: threading.Thread | None = None

    @classmethod
    async def serve(cls, hosts: str | Sequence[str], udp_port: int = 0, tcp_port: int = 0, *,
                    tls: ssl.SSLContext | None = None, limits: Limits | None = None,
                    clock: Clock = time.monotonic, wall: Clock = time.time) -> Relay:
        """Listen on these addresses; port 0 takes any free one. Raises OSError.

        An address should be one that clients name: the answers of a socket bound to 0.0.0.0 may come from another one.
        """
        relay = cls(limits, clock, wall)
        try:
            for host in [hosts] if isinstance(hosts, str) else hosts:
                relay.udp_port = relay._open(host, relay.udp_port or udp_port)
            relay._tcp = await TcpRelay.serve(relay, [hosts] if isinstance(hosts, str) else hosts, tcp_port, tls)
            relay.tcp_port = relay._tcp.port
            relay._thread = threading.Thread(target=relay._forward_udp, name="migrator-relay", daemon=True)
            relay._thread.start()
        except BaseException:
            await relay.close()
            raise
        return relay

    def open_connections(self) -> int:
        """How many connections there are by TCP, joined or not."""
        return self._tcp.door.open if self._tcp else 0

    async def close(self) -> None:
        """Stop; safe to repeat."""
        if self._tcp:
            await self._tcp.close()
            self._tcp = None
        if self._thread:
            os.eventfd_write(self._stop, 1)
            self._thread.join()
            self._thread = None
        for sock in self._udp:
            sock.close()
        if self._stop >= 0:
            os.close(self._stop)
            self._stop = -1
        self._udp.clear()

    def _open(self, host: str, port: int) -> int:
        sock = socket.socket(family_of(host), socket.SOCK_DGRAM)
        self._udp.append(sock)
        bind(sock, host, port)
        sock.setblocking(False)
        gso.enlarge(sock)
        found: int = sock.getsockname()[1]
        return found

    def _forward_udp(self) -> None:
        poll = select.poll()
        poll.register(self._stop, select.POLLIN)
        by_fd = {sock.fileno(): sock for sock in self._udp}
        for fd in by_fd:
            poll.register(fd, select.POLLIN)
        buffer = bytearray(gso.BATCH)
        swept = self._clock()
        while True:
            for fd, _ in poll.poll(SWEEP * 1000):
                if fd == self._stop:
                    return
                self._drain(by_fd[fd], buffer)
            if self._clock() - swept > SWEEP:
                swept = self._clock()
                self.pairs.sweep()

    def _drain(self, sock: socket.socket, buffer: bytearray) -> None:
        """Read what one socket has, but let the others have their turn."""
        view = memoryview(buffer)
        for _ in range(64):
            try:
                size, segment, address = gso.receive(sock, buffer)
            except BlockingIOError:
                return
            except OSError:  # an ICMP error for something sent before
                continue
            data = view[:size]
            # WireGuard's datagrams begin with 1 to 4; encrypted data may look like ours by chance, so this only asks.
            if buffer.find(wire.MAGIC, 0, size) >= 0:
                for each in gso.split(data, segment):
                    self._one(sock, address, each)
                continue
            end = self.pairs.by_via.get((sock.fileno(), address))
            if end is None:
                self.dropped += 1
            else:
                self.forward(end, data, segment)

    def _one(self, sock: socket.socket, address: tuple[str, int], data: memoryview) -> None:
        """A datagram that may be a JOIN."""
        if len(data) == wire.JOIN_SIZE and data[:4] == wire.MAGIC and data[4] in (wire.Type.JOIN, wire.Type.LEAVE):
            said = self.answer(bytes(data), address, (sock.fileno(), address), partial(_send, sock, address))
            if said:
                with contextlib.suppress(OSError):
                    sock.sendto(said[0], address)
        elif end := self.pairs.by_via.get((sock.fileno(), address)):
            self.forward(end, data, 0)
        else:
            self.dropped += 1


def _send(sock: socket.socket, address: tuple[str, int], data: memoryview, segment: int) -> None:
    """Reaches a UDP end; called from the UDP thread and from the event loop."""
    gso.send(sock, data, segment, address)
