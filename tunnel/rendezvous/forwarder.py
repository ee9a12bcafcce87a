# SPDX-License-Identifier: GPL-2.0-or-later
"""What a relay does, whatever its sockets are: forward datagrams from one end of a session to the other, unread.

An end is identified by the address from which it joined (`tunnel.relay.relay_messages`), so that afterwards WireGuard
talks to the relay as if that were its peer. State is kept in memory only.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Hashable

from migrator.base.clock import Clock
from tunnel.candidates.nat import Endpoint
from tunnel.relay import relay_messages as wire
from tunnel.rendezvous.limits import group
from tunnel.rendezvous.pairs import End, Limits, Pairs, Send

COOKIE_WINDOW = 30  # seconds; a cookie is valid for this window and the next


class Forwarder:
    """Who may join and who has, and what is forwarded to whom."""

    def __init__(self, limits: Limits | None = None, clock: Clock = time.monotonic, wall: Clock = time.time) -> None:
        self.limits = limits or Limits()
        self.pairs = Pairs(self.limits, clock, wall)
        self.forwarded = 0  # bytes
        self.dropped = 0  # datagrams for which there was no end, allowance or room
        self._clock = clock
        self._wall = wall
        self._secret = secrets.token_bytes(32)
        self._cookies = secrets.token_bytes(32)

    def token(self, session: bytes, own: bytes, peer: bytes) -> tuple[bytes, bytes]:
        """The claim and the key with which `own` may join the session with `peer`; both are public identities."""
        expires = int(self._wall() + self.limits.token_life)
        claim = wire.Claim(session, wire.identity_hash(own), wire.identity_hash(peer), expires).pack()
        return claim, wire.token_key(self._secret, claim)

    def answer(self, data: bytes, address: Endpoint, via: Hashable, send: Send) -> tuple[bytes, End | None] | None:
        """What to answer to a JOIN from `address`, and the end if it is one now; None if there is nothing to say."""
        asked = wire.parse_join(data)
        if asked is None:
            return None
        key = wire.token_key(self._secret, asked.packed)
        if not wire.proved(data, key) or asked.claim.own == asked.claim.peer:
            return None
        window = int(self._clock() // COOKIE_WINDOW)
        good = [wire.cookie(self._cookies, address, each) for each in (window, window - 1)]
        if asked.cookie not in good:
            return None if asked.leaves else (wire.challenge(key, asked.number, good[0]), None)
        if asked.leaves:
            self.pairs.leave(asked.claim, via)
            return None
        end = self.pairs.join(asked.claim, group(address[0]), via, send)
        if isinstance(end, wire.Refusal):
            return wire.refused(key, asked.number, end), None
        return wire.joined(key, asked.number, present=end.other is not None), end

    def forward(self, end: End, data: memoryview, segment: int) -> None:
        """Forward what an end has sent to the other one, if that is there and the pair is within its limits."""
        end.seen = self._clock()
        other = end.other
        if other is None or not self.pairs.may(end.pair, len(data), end.seen):
            self.dropped += 1
            return
        self.forwarded += len(data)
        other.send(data, segment)
