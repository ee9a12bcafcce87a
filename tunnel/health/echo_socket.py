# SPDX-License-Identifier: GPL-2.0-or-later
"""The UDP socket that an echo uses: many datagrams per call, and the kernel's receive timestamps."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Callable

from tunnel import gso

_READS = 64  # datagrams before other tasks have their turn
_SO_TIMESTAMPNS = 35  # asm-generic/socket.h; also the kind of its ancillary message
_IPV6_DONTFRAG = 62  # linux/in6.h
_TIMESPEC = struct.Struct("@qq")


class EchoSocket:
    """A socket between two addresses of a tunnel; what others send to it is dropped."""

    def __init__(self, local: str, port: int, remote: tuple[str, int]) -> None:
        """Bound to `port` of `local`, 0 for any; raises OSError."""
        self._loop = asyncio.get_running_loop()
        self._remote = remote
        self._socket = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self._socket.bind((local, port))
            # A datagram larger than the interface's MTU is to be refused, not sent in two fragments.
            self._socket.setsockopt(socket.IPPROTO_IPV6, _IPV6_DONTFRAG, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            gso.enlarge(self._socket)
        except BaseException:
            self._socket.close()
            raise

    @property
    def port(self) -> int:
        """The port that it is bound to."""
        port: int = self._socket.getsockname()[1]
        return port

    def listen(self, take: Callable[[bytes, int], None]) -> None:
        """From now on pass what the peer sends to `take`, with the nanoseconds since 1970 at which it arrived."""
        self._loop.add_reader(self._socket, self._read, take)

    def close(self) -> None:
        """Close it; safe to repeat."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._socket.close()

    def put(self, datagram: bytes) -> bool:
        try:
            self._socket.sendto(datagram, self._remote)
        except OSError:
            return False
        return True

    async def put_many(self, datagram: bytes, count: int) -> bool:
        """In one call if the kernel supports that."""
        try:
            if count > 1:
                self._socket.sendmsg([datagram * count], gso.cut_into(len(datagram)), 0, self._remote)
            else:
                self._socket.sendto(datagram, self._remote)
        except BlockingIOError:
            await asyncio.sleep(0.001)
            return False
        except OSError:  # no segmentation on this interface, or no route at all
            for _ in range(count):
                self.put(datagram)
        await asyncio.sleep(0)
        return True

    def _read(self, take: Callable[[bytes, int], None]) -> None:
        for _ in range(_READS):
            try:
                data, ancillary, _, sender = self._socket.recvmsg(65535, 128)
            except OSError:  # nothing more for now, or a refusal that the kernel reports here
                return
            segment, arrived = len(data), time.time_ns()
            for level, kind, value in ancillary:
                if each := gso.size_told(level, kind, value):
                    segment = each
                elif level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS and len(value) == _TIMESPEC.size:
                    seconds, nanoseconds = _TIMESPEC.unpack(value)
                    arrived = seconds * 1_000_000_000 + nanoseconds
            if sender[:2] != self._remote:
                continue
            for at in range(0, len(data), max(1, segment)):
                take(data[at : at + segment], arrived)
