# SPDX-License-Identifier: GPL-2.0-or-later
"""How much one address, and all together, may use of the server: rates, connections, queued bytes."""

from __future__ import annotations

import dataclasses
import ipaddress
import socket
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from typing import TypeVar

from migrator.base.clock import Clock

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Rate:
    """`burst` at once, and `per_second` in the long run."""

    per_second: float
    burst: float


CALLS = Rate(2000, 2000)  # in addition to those that are free
CALL_BYTES = 4096  # bytes read for each free call: three datagrams of full size


@dataclasses.dataclass(frozen=True)
class Limits:
    """How much is enough. Several hosts may share an address behind one NAT."""

    connections: int = 1024
    connections_per_address: int = 32
    connects: Rate = Rate(2, 30)  # from one address
    handshake: float = 5.0  # seconds that TLS may take
    greeting: float = 10.0  # seconds from then until a peer has presented itself
    messages: Rate = Rate(10, 60)  # on one connection
    rings: Rate = Rate(2, 20)  # from one address: what can wake an agent
    # To one connection, whoever they come from: rings, and as many messages to its line. Both, with the answers
    # that it gets itself, are fewer than the frames that an agent takes from a server (tunnel.signalling.link.FRAMES).
    brought: Rate = Rate(40, 150)
    messages_each: Rate = Rate(10, 60)  # of these messages, from one address, as identities cost nothing
    senders: int = 64  # addresses whose messages to one connection are remembered
    pairings: Rate = Rate(0.2, 10)  # from one address: what can use up a code
    reflections: Rate = Rate(20, 200)  # to one address, per reflector
    lines_per_identity: int = 8
    nameplates: int = 1000
    nameplates_per_address: int = 4
    pairing_life: float = 600.0  # seconds
    queue: int = 16  # messages queued for one slow connection
    queued_bytes: int = 64 * 1024  # of these: two of the largest, and 64 MiB for all connections together
    slow: float = 15.0  # seconds that a connection may take for one message
    addresses: int = 4096  # whose rates are remembered


class Bucket:
    """A token bucket."""

    def __init__(self, rate: Rate, clock: Clock = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._level = rate.burst
        self._at = clock()

    def take(self, count: int = 1) -> bool:
        """Whether one more, or so many, are allowed now."""
        now = self._clock()
        self._level = min(self._rate.burst, self._level + (now - self._at) * self._rate.per_second)
        self._at = now
        if self._level < count:
            return False
        self._level -= count
        return True


class Calls:
    """How many system calls the datagrams of one TCP connection may cost when they are forwarded.

    Consecutive datagrams of the same size leave in one call, so a sender that alternates sizes costs a hundred times as
    much per byte. What a bulk transfer needs is free: one call for each 4 KiB that were read.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._more = Bucket(CALLS, clock)

    def cut(self, calls: list[T], read: int) -> list[T]:
        """As many of these calls, for what one read of that many bytes has returned, as are allowed now."""
        free = 1 + read // CALL_BYTES
        for number in range(free, len(calls)):
            if not self._more.take():
                return calls[:number]
        return calls


class Buckets:
    """A bucket for each key, for the `size` keys that were used last.

    Somebody with enough addresses to make it forget others' buckets evades the limit; bounding memory matters more.
    """

    def __init__(self, rate: Rate, size: int, clock: Clock = time.monotonic) -> None:
        self._rate = rate
        self._size = size
        self._clock = clock
        self._buckets: OrderedDict[Hashable, Bucket] = OrderedDict()

    def take(self, key: Hashable) -> bool:
        """Whether one more is allowed now for that key."""
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = Bucket(self._rate, self._clock)
            if len(self._buckets) > self._size:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(key)
        return bucket.take()

    def __len__(self) -> int:
        return len(self._buckets)


def group(address: str) -> str:
    """What counts as one address: an IPv4 address, or the /64 from which an IPv6 host can choose its addresses."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped:
        return str(found.ipv4_mapped)
    return str(ipaddress.IPv6Network((found, 64), strict=False))


def family_of(address: str) -> socket.AddressFamily:
    """The family of the socket that can be bound to it."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def bind(sock: socket.socket, address: str, port: int) -> None:
    """Bind it there; `::` includes IPv4. Raises OSError."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address != "::"))
    sock.bind((address, port))


class Door:
    """Counts connections from when they are accepted, before TLS costs anything, until their sockets are closed.

    `most` in all, `each` from one address, from which new ones may come at a limited rate.
    """

    def __init__(self, most: int, each: int, connects: Buckets) -> None:
        self._most = most
        self._each = each
        self._connects = connects
        self._open: Counter[str] = Counter()
        self.turned_away = 0

    @property
    def open(self) -> int:
        """How many connections there are."""
        return self._open.total()

    def enter(self, address: str) -> bool:
        """Whether a connection from there may stay; if so, it is counted."""
        if self.open >= self._most or self._open[address] >= self._each or not self._connects.take(address):
            self.turned_away += 1
            return False
        self._open[address] += 1
        return True

    def leave(self, address: str) -> None:
        """A connection that was counted has ended."""
        self._open[address] -= 1
        if not self._open[address]:
            del self._open[address]


class GuardedListener(socket.socket):
    """A listening socket whose `accept` turns connections away at the door.

    asyncio calls `accept` itself and offers no other place to look at an address before TLS begins.
    """

    door: Door

    @classmethod
    def open(cls, address: str, port: int, door: Door, backlog: int = 128) -> GuardedListener:
        """Listen there; `port` 0 takes a free one. Raises OSError."""
        listener = cls(family_of(address), socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bind(listener, address, port)
            listener.listen(backlog)
            listener.setblocking(False)
        except BaseException:
            listener.close()
            raise
        listener.door = door
        return listener

    def accept(self) -> tuple[socket.socket, tuple[str, int]]:
        sock, address = super().accept()
        key = group(address[0])
        if not self.door.enter(key):
            sock.close()
            raise ConnectionAbortedError  # asyncio goes back to waiting for the next
        return _Counted(sock, self.door, key), address


class _Counted(socket.socket):
    def __init__(self, sock: socket.socket, door: Door, key: str) -> None:
        super().__init__(sock.family, sock.type, sock.proto, fileno=sock.detach())
        self._leave: Callable[[], None] | None = lambda: door.leave(key)

    def close(self) -> None:
        super().close()
        leave, self._leave = self._leave, None
        if leave:
            leave()
