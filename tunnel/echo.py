# SPDX-License-Identifier: GPL-2.0-or-later
"""Small questions and answers through a tunnel: one UDP socket asks, and answers what the peer asks.

A datagram is a header (magic, kind u8, three zero bytes, number u64, big-endian) and what its kind adds:

    ASK     zeros up to its size               -> ANSWER with the same number
    ANSWER
    LOAD    one of many that measure the rate; the number is the train's; zeros up to its size
    COUNT   what has arrived of that train?    -> ARRIVED
    ARRIVED datagrams u32, bytes u64, microseconds from the first to the last u64

Numbers are random, and only an answer with the number of a question that waits counts: WireGuard keeps strangers out of
the tunnel, but a user of this host could send to its address, too. What makes no sense is passed over in silence.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
import socket
import struct
import time
from collections.abc import Callable

MAGIC = b"MGE1"
ASK, ANSWER, LOAD, COUNT, ARRIVED = range(1, 6)

HEADER = struct.Struct("!4sB3xQ")
_COUNTED = struct.Struct("!IQQ")
UDP_HEADERS = 48  # bytes of IPv6 and UDP before ours
WAITING_MAX = 1024  # questions without an answer that are remembered

_SOCKET_BUFFER = 4 * 1024 * 1024  # bytes
_LOAD_CALL = 60_000  # bytes in one call
_READS = 64  # datagrams before other tasks have their turn
_SO_TIMESTAMPNS = 35  # asm-generic/socket.h; also the kind of its ancillary message
_UDP_SEGMENT, _UDP_GRO = 103, 104  # linux/udp.h
_IPV6_DONTFRAG = 62  # linux/in6.h
_TIMESPEC = struct.Struct("@qq")


@dataclasses.dataclass(frozen=True)
class Arrived:
    """What the peer got of a train."""

    datagrams: int
    bytes: int  # ours, headers included
    seconds: float  # from the first to the last


@dataclasses.dataclass
class _Train:
    """What has arrived of the peer's train; only the newest is remembered."""

    number: int
    datagrams: int = 0
    bytes: int = 0
    first: int = 0  # nanoseconds, by the kernel's clock
    last: int = 0


class Echo:
    """The echo of one side. Made by `open`; lives in the running loop until `close`."""

    def __init__(self, sock: socket.socket, remote: tuple[str, int]) -> None:
        self.heard = 0.0  # time.monotonic() of the last answer; 0 before the first
        self._socket = sock
        self._remote = remote
        self._waiting: dict[int, tuple[float, Callable[[float], None]]] = {}
        self._counting: dict[int, asyncio.Future[Arrived]] = {}
        self._train = _Train(0)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._read)

    @classmethod
    def open(cls, local: str, remote: str, port: int, *, remote_port: int | None = None) -> Echo:
        """An echo between two tunnel addresses, on the same port at both ends; raises OSError."""
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            sock.bind((local, port))
            # Larger than the interface's MTU means too large, not two fragments.
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_DONTFRAG, 1)
            sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                sock.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER)
            with contextlib.suppress(OSError):  # a kernel before 5.0
                sock.setsockopt(socket.IPPROTO_UDP, _UDP_GRO, 1)
            return cls(sock, (remote, remote_port or port))
        except BaseException:
            sock.close()
            raise

    @property
    def port(self) -> int:
        """The port that it is bound to."""
        port: int = self._socket.getsockname()[1]
        return port

    def close(self) -> None:
        """Stop asking and answering; safe to repeat. Questions that wait get no answer."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._socket.close()

    # --- Asking ---

    def send(self, answered: Callable[[float], None], *, size: int = HEADER.size) -> bool:
        """Ask, and go on; `answered` gets the seconds that it took. False where it could not even be sent.

        `size` in bytes, headers of UDP and IPv6 not counted.
        """
        while len(self._waiting) >= WAITING_MAX:
            self._waiting.pop(next(iter(self._waiting)))  # the oldest
        number = secrets.randbits(64)
        self._waiting[number] = time.monotonic(), answered
        if self._put(ASK, number, bytes(max(0, size - HEADER.size))):
            return True
        del self._waiting[number]
        return False

    async def ask(self, *, size: int = HEADER.size, timeout: float = 1.0) -> float | None:
        """Ask once and wait; the seconds that the answer took, None without one within `timeout` seconds."""
        answer: asyncio.Future[float] = self._loop.create_future()

        def answered(seconds: float) -> None:
            if not answer.done():
                answer.set_result(seconds)

        self.send(answered, size=size)
        try:
            return await asyncio.wait_for(answer, timeout)
        except TimeoutError:
            return None

    # --- Trains ---

    async def load(self, total: int, *, size: int, timeout: float = 2.0) -> Arrived | None:
        """Send `total` bytes in datagrams of `size` as fast as they go, and ask what arrived of them.

        None where no answer came within `timeout` seconds after the last was sent.
        """
        number = secrets.randbits(64)
        datagram = HEADER.pack(MAGIC, LOAD, number) + bytes(max(0, size - HEADER.size))
        batch = max(1, min(40, _LOAD_CALL // len(datagram)))
        left = -(-total // len(datagram))
        while left:
            count = min(batch, left)
            if await self._send_batch(datagram, count):
                left -= count
        for _ in range(4):
            found: asyncio.Future[Arrived] = self._loop.create_future()
            self._counting[number] = found
            self._put(COUNT, number)
            try:
                return await asyncio.wait_for(found, timeout / 4)
            except TimeoutError:
                pass
            finally:
                self._counting.pop(number, None)
        return None

    async def _send_batch(self, datagram: bytes, count: int) -> bool:
        """Send the same datagram `count` times, in one call where the kernel can; False to try again."""
        try:
            if count > 1:
                segment = [(socket.IPPROTO_UDP, _UDP_SEGMENT, struct.pack("=H", len(datagram)))]
                self._socket.sendmsg([datagram * count], segment, 0, self._remote)
            else:
                self._socket.sendto(datagram, self._remote)
        except BlockingIOError:
            await asyncio.sleep(0.001)
            return False
        except OSError:  # no segments on this interface, or no way there at all
            for _ in range(count):
                with contextlib.suppress(OSError):
                    self._socket.sendto(datagram, self._remote)
        await asyncio.sleep(0)
        return True

    # --- Receiving ---

    def _put(self, kind: int, number: int, body: bytes = b"") -> bool:
        try:
            self._socket.sendto(HEADER.pack(MAGIC, kind, number) + body, self._remote)
        except OSError:
            return False
        return True

    def _read(self) -> None:
        for _ in range(_READS):
            try:
                data, ancillary, _, sender = self._socket.recvmsg(65535, 128)
            except OSError:  # nothing more for now, or a refusal that the kernel reports here
                return
            segment, arrived = len(data), time.time_ns()
            for level, kind, value in ancillary:
                if level == socket.IPPROTO_UDP and kind == _UDP_GRO:
                    segment = struct.unpack("=i", value[:4])[0]
                elif level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS and len(value) == _TIMESPEC.size:
                    seconds, nanoseconds = _TIMESPEC.unpack(value)
                    arrived = seconds * 1_000_000_000 + nanoseconds
            if sender[:2] != self._remote:
                continue
            for at in range(0, len(data), max(1, segment)):
                self._take(data[at : at + segment], arrived)

    def _take(self, data: bytes, arrived: int) -> None:
        if len(data) < HEADER.size:
            return
        magic, kind, number = HEADER.unpack_from(data)
        if magic != MAGIC:
            return
        if kind == LOAD:
            self._count(number, len(data), arrived)
        elif kind == ASK:
            self._put(ANSWER, number)
        elif kind == ANSWER:
            if waiting := self._waiting.pop(number, None):
                self.heard = time.monotonic()
                waiting[1](self.heard - waiting[0])
        elif kind == COUNT:
            train = self._train if self._train.number == number else _Train(number)
            span = max(0, train.last - train.first) // 1000
            self._put(ARRIVED, number, _COUNTED.pack(train.datagrams, train.bytes, span))
        elif kind == ARRIVED and len(data) == HEADER.size + _COUNTED.size:
            found = self._counting.get(number)
            if found and not found.done():
                datagrams, size, span = _COUNTED.unpack_from(data, HEADER.size)
                found.set_result(Arrived(datagrams, size, span / 1e6))

    def _count(self, number: int, size: int, arrived: int) -> None:
        if self._train.number != number:
            self._train = _Train(number, first=arrived)
        self._train.datagrams = min(self._train.datagrams + 1, 0xFFFFFFFF)
        self._train.bytes += size
        self._train.last = arrived
