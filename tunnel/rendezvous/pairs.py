# SPDX-License-Identifier: GPL-2.0-or-later
"""Who has joined the relay: pairs of ends, with each one's limits. In memory only; called from several threads."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Hashable

from migrator.base.clock import Clock
from tunnel.relay import relay_messages as wire
from tunnel.rendezvous.limits import Rate

# Sends datagrams of `segment` bytes each (the last may be shorter; 0: one datagram) to an end.
Send = Callable[[memoryview, int], None]
CONNECTS = Rate(2, 30)


@dataclasses.dataclass(frozen=True)
class Limits:
    """How much one relay gives away. Zero: no limit."""

    token_life: float = 600.0  # seconds from when a token is made until its first use at the latest
    idle: float = 90.0  # seconds of silence after which an end is forgotten; WireGuard sends something every 25
    silent: float = 5.0  # after which a pair makes room for another; peers echo five times a second
    pairs: int = 256
    pairs_each: int = 16  # joined by one identity
    pairs_per_address: int = 16  # joined from one address, as identities cost nothing
    pair_bytes: int = 4 * 2**40
    pair_rate: int = 0  # bytes per second, both directions together
    connections: int = 512  # by TCP
    connections_per_address: int = 32
    connects: Rate = CONNECTS  # from one address
    handshake: float = 5.0  # seconds that TLS may take
    joining: float = 10.0  # seconds from then until an end has joined
    addresses: int = 4096  # whose rates are remembered


@dataclasses.dataclass
class End:
    """One end that has joined; `send` reaches it."""

    pair: Pair
    identity: bytes
    address: str  # from which it joined: `limits.group`
    via: Hashable  # how it is reached: the UDP socket's number and the address, or the TCP connection
    send: Send
    seen: float
    other: End | None = None


@dataclasses.dataclass
class Pair:
    """The two ends of a session."""

    session: bytes
    identities: frozenset[bytes]
    ends: dict[bytes, End] = dataclasses.field(default_factory=dict)
    bytes: int = 0
    allowance: float = 0.0  # bytes that may be forwarded now, if there is a rate
    refilled: float = 0.0

    def heard(self) -> float:
        """When the last sign of life came, by the clock of these pairs."""
        return max((end.seen for end in self.ends.values()), default=0.0)


class Pairs:
    """All existing pairs. `wall` returns the seconds since 1970 by which tokens expire."""

    def __init__(self, limits: Limits, clock: Clock = time.monotonic, wall: Clock = time.time) -> None:
        self._limits = limits
        self._clock = clock
        self._wall = wall
        self._lock = threading.Lock()
        self._pairs: dict[tuple[bytes, frozenset[bytes]], Pair] = {}
        self.by_via: dict[object, End] = {}  # to be read without the lock

    def __len__(self) -> int:
        return len(self._pairs)

    @property
    def sessions(self) -> list[bytes]:
        return [pair.session for pair in self._pairs.values()]

    def leave(self, claim: wire.Claim, via: Hashable) -> None:
        """The end that joined with this claim from there is gone."""
        with self._lock:
            pair = self._pairs.get((claim.session, frozenset((claim.own, claim.peer))))
            end = pair.ends.get(claim.own) if pair else None
            if end and end.via == via:
                self._forget(end)

    def join(self, claim: wire.Claim, address: str, via: Hashable, send: Send) -> End | wire.Refusal:
        """Turn the holder of this claim into an end; one that has joined before moves to where it joins from now.

        `address` is what it counts for (`limits.group`).
        """
        with self._lock:
            identities = frozenset((claim.own, claim.peer))
            pair = self._pairs.get((claim.session, identities))
            old = pair.ends.get(claim.own) if pair else None
            if old is None and claim.expires < self._wall():
                return wire.Refusal.EXPIRED
            if pair and self._limits.pair_bytes and pair.bytes > self._limits.pair_bytes:
                return wire.Refusal.QUOTA
            if old and old.via == via:
                old.seen = self._clock()
                return old
            if not self._room(claim.own, address, pair):
                return wire.Refusal.FULL
            if pair is None:
                pair = Pair(claim.session, identities, refilled=self._clock())
            for before in (old, self.by_via.get(via)):
                if before:
                    self._forget(before)
            return self._add(pair, claim, address, via, send)

    def _add(self, pair: Pair, claim: wire.Claim, address: str, via: Hashable, send: Send) -> End:
        end = End(pair, claim.own, address, via, send, self._clock(), pair.ends.get(claim.peer))
        pair.ends[claim.own] = self.by_via[via] = end
        self._pairs[pair.session, pair.identities] = pair  # forgetting its last end has removed it
        if end.other:
            end.other.other = end
        return end

    def _room(self, identity: bytes, address: str, joins: Pair | None) -> bool:
        """Whether an end may join this pair, or a new one; among those that count, a silent one makes room for it.

        A pair counts for whoever has joined it and from where, never for an identity that is only named as its other
        end: the holder of a token may name anybody there.
        """
        others = [pair for pair in self._pairs.values() if pair is not joins]
        counted = [
            ([pair for pair in others if identity in pair.ends], self._limits.pairs_each),
            ([pair for pair in others if any(end.address == address for end in pair.ends.values())],
             self._limits.pairs_per_address),
        ]
        if joins is None:
            counted.append((others, self._limits.pairs))
        for found, most in counted:
            if not most or len(found) < most:
                continue
            oldest = min(found, key=Pair.heard)
            if oldest.heard() > self._clock() - self._limits.silent:
                return False
            for end in list(oldest.ends.values()):
                self._forget(end)
        return True

    def gone(self, end: End) -> None:
        """That end's connection has ended."""
        with self._lock:
            if end.pair.ends.get(end.identity) is end:
                self._forget(end)

    def _forget(self, end: End) -> None:
        end.pair.ends.pop(end.identity, None)
        if end.other:
            end.other.other = None
        self.by_via.pop(end.via, None)
        if not end.pair.ends:
            self._pairs.pop((end.pair.session, end.pair.identities), None)

    def sweep(self) -> None:
        """Forget ends that have been silent for too long."""
        limit = self._clock() - self._limits.idle
        with self._lock:
            for end in [end for pair in self._pairs.values() for end in pair.ends.values() if end.seen < limit]:
                self._forget(end)

    def may(self, pair: Pair, size: int, now: float) -> bool:
        """Whether the pair's quota and rate allow this."""
        pair.bytes += size
        if self._limits.pair_bytes and pair.bytes > self._limits.pair_bytes:
            return False
        rate = self._limits.pair_rate
        if rate:
            pair.allowance = min(rate / 4, pair.allowance + (now - pair.refilled) * rate)  # a quarter second's burst
            pair.refilled = now
            if pair.allowance < size:
                return False
            pair.allowance -= size
        return True
