# SPDX-License-Identifier: GPL-2.0-or-later
"""Small requests and answers through a tunnel: each side asks, and answers what the peer asks.

A datagram is a header (magic, kind u8, three zero bytes, number u64, big-endian) and what its kind adds:

    ASK     zeros up to its size               -> ANSWER with the same number
    ANSWER
    LOAD    one of many that measure the rate; the number is the train's; zeros up to its size
    COUNT   what has arrived of that train?    -> ARRIVED
    ARRIVED datagrams u32, bytes u64, microseconds from the first to the last u64

Numbers are random, and an answer counts only if its number is that of a request that is waiting: WireGuard keeps
strangers out of the tunnel, but a user of this host could send to its address, too. Malformed datagrams are silently
ignored.
"""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
import struct
from collections.abc import Callable
from typing import Protocol

from migrator.base.clock import now
from tunnel.health.echo_socket import EchoSocket

MAGIC = b"MGE1"
ASK, ANSWER, LOAD, COUNT, ARRIVED = range(1, 6)

HEADER = struct.Struct("!4sB3xQ")
_COUNTED = struct.Struct("!IQQ")
UDP_HEADERS = 48  # bytes of IPv6 and UDP before ours
WAITING_MAX = 1024  # unanswered requests that are remembered
_LOAD_CALL = 60_000  # bytes per call


class Line(Protocol):
    """Carries datagrams to the peer, without a guarantee; what arrives from there is passed to `Echo.take`."""

    def put(self, datagram: bytes) -> bool:
        """Send one; False if it could not even be sent."""

    async def put_many(self, datagram: bytes, count: int) -> bool:
        """Send the same one `count` times; False if all of them have to be tried again."""

    def close(self) -> None:
        """Stop carrying anything; safe to repeat."""


@dataclasses.dataclass(frozen=True)
class Arrived:
    """What the peer received of a train."""

    datagrams: int
    bytes: int  # ours, headers included
    seconds: float  # from the first to the last


@dataclasses.dataclass
class _Train:
    """What has arrived of the peer's train; only the newest is remembered."""

    number: int
    datagrams: int = 0
    bytes: int = 0
    first: int = 0  # nanoseconds, by the clock of whatever received it from the network
    last: int = 0


class Echo:
    """One side's echo, over `line` (`open` makes one with a UDP socket), in the running loop until `close`."""

    def __init__(self, line: Line) -> None:
        self.heard = 0.0  # by the loop's clock, when the last answer came; 0 before the first
        self._line = line
        self._waiting: dict[int, tuple[float, Callable[[float], None]]] = {}
        self._counting: dict[int, asyncio.Future[Arrived]] = {}
        self._train = _Train(0)

    @classmethod
    def open(cls, local: str, remote: str, port: int, *, remote_port: int | None = None) -> Echo:
        """An echo between two tunnel addresses, on the same port at both ends; raises OSError."""
        line = EchoSocket(local, port, (remote, remote_port or port))
        made = cls(line)
        line.listen(made.take)
        return made

    def close(self) -> None:
        """Stop asking and answering; safe to repeat. Requests that are waiting get no answer."""
        self._line.close()

    # --- Asking ---

    def send(self, answered: Callable[[float], None], *, size: int = HEADER.size) -> bool:
        """Ask without waiting; `answered` is called with the seconds that it took. False if it could not even be sent.

        `size` in bytes, without the UDP and IPv6 headers.
        """
        while len(self._waiting) >= WAITING_MAX:
            self._waiting.pop(next(iter(self._waiting)))  # the oldest
        number = secrets.randbits(64)
        self._waiting[number] = now(), answered
        if self._put(ASK, number, bytes(max(0, size - HEADER.size))):
            return True
        del self._waiting[number]
        return False

    async def ask(self, *, size: int = HEADER.size, timeout: float = 1.0) -> float | None:
        """Ask once and wait; the seconds that the answer took, None if there was none within `timeout` seconds."""
        answer: asyncio.Future[float] = asyncio.get_running_loop().create_future()

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
        """Send `total` bytes in datagrams of `size` as fast as possible, and ask how much of them arrived.

        None if no answer came within `timeout` seconds after the last one was sent.
        """
        number = secrets.randbits(64)
        datagram = HEADER.pack(MAGIC, LOAD, number) + bytes(max(0, size - HEADER.size))
        batch = max(1, min(40, _LOAD_CALL // len(datagram)))
        left = -(-total // len(datagram))
        while left:
            count = min(batch, left)
            if await self._line.put_many(datagram, count):
                left -= count
        for _ in range(4):
            found: asyncio.Future[Arrived] = asyncio.get_running_loop().create_future()
            self._counting[number] = found
            self._put(COUNT, number)
            try:
                return await asyncio.wait_for(found, timeout / 4)
            except TimeoutError:
                pass
            finally:
                self._counting.pop(number, None)
        return None

    # --- Receiving ---

    def _put(self, kind: int, number: int, body: bytes = b"") -> bool:
        return self._line.put(HEADER.pack(MAGIC, kind, number) + body)

    def take(self, data: bytes, arrived: int) -> None:
        """A datagram from the peer, which arrived at `arrived`, in nanoseconds by a clock of the caller's."""
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
                self.heard = now()
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
