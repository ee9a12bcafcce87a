# SPDX-License-Identifier: GPL-2.0-or-later
"""A tiny model of a network: two hosts behind NATs, one router between these, a relay, and an attacker who sees it all.

Time is simulated; what is lost, doubled and late is decided by a seeded random number generator.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from typing import Literal

from tunnel.candidates import nat
from tunnel.candidates.candidate import Candidate
from tunnel.candidates.nat import Endpoint
from tunnel.candidates.outlook import Policy
from tunnel.punching.actions import RELAY, RELAY_ENDPOINT, Action, Config, Done, Failed, OpenSockets, Send
from tunnel.punching.punch import Punch

Kind = Literal["none", "full-cone", "address-restricted", "port-restricted", "symmetric", "blocked"]
KINDS: tuple[Kind, ...] = ("none", "full-cone", "address-restricted", "port-restricted", "symmetric", "blocked")
SEEN_AS: dict[Kind, nat.Kind] = {
    "none": "open", "full-cone": "cone", "address-restricted": "cone", "port-restricted": "cone",
    "symmetric": "symmetric", "blocked": "blocked",
}  # fmt: skip
KEY = b"k" * 32
REFLECTOR = ("192.0.2.1", 3478)


class Router:
    """One host's NAT. Without `input_drop` a packet that it did not expect makes an entry that moves mappings."""

    def __init__(self, kind: Kind, address: str, rng: random.Random, *, input_drop: bool = True) -> None:
        self.kind = kind
        self.address = address
        self._rng = rng
        self._input_drop = input_drop
        self._mapped: dict[tuple[Endpoint, Endpoint | None], int] = {}  # (inside, there or None for all) -> port
        self._inside: dict[int, Endpoint] = {}
        self._spoken: set[tuple[int, Endpoint]] = set()
        self._local: set[tuple[Endpoint, int]] = set()  # entries of packets that were for the router itself

    def out(self, source: Endpoint, to: Endpoint) -> Endpoint | None:
        """The source that the other side sees."""
        if self.kind == "none":
            return source
        if self.kind == "blocked":
            return None
        key = (source, to if self.kind == "symmetric" else None)
        moved = (source, to)
        port = self._mapped.get(moved) or self._mapped.get(key)
        if port is None:
            port = source[1] if key[1] is None and source[1] not in self._inside else self._free(to)
            self._mapped[key] = port
        if (to, port) in self._local and (port, to) not in self._spoken:
            port = self._mapped[moved] = self._free(to)
        self._inside[port] = source
        self._spoken.add((port, to))
        return self.address, port

    def _free(self, to: Endpoint) -> int:
        while (port := self._rng.randrange(1024, 65536)) in self._inside or (to, port) in self._local:
            pass
        return port

    def into(self, source: Endpoint, port: int) -> Endpoint | None:
        """The host's socket that a packet gets to."""
        if self.kind == "none":
            return self.address, port
        inside = self._inside.get(port)
        allowed = {
            "full-cone": inside is not None,
            "address-restricted": any(p == port and there[0] == source[0] for p, there in self._spoken),
        }.get(self.kind, (port, source) in self._spoken)
        if self.kind != "blocked" and inside and allowed and (source, port) not in self._local:
            return inside
        if not self._input_drop:
            self._local.add((source, port))
        return None


class Side:
    """One host: its punch and its sockets."""

    def __init__(self, net: Net, name: str, router: Router, inside: str) -> None:
        self.net = net
        self.name = name
        self.router = router
        self.address = inside
        self.ports = [40000 if name == "a" else 50000]
        self.punch: Punch | None = None
        self.ended: Done | Failed | None = None
        self.ended_at = 0.0
        self.sent: list[Send] = []
        self.heard: list[bytes] = []
        self._timer = 0

    def candidates(self) -> list[Candidate]:
        found = [Candidate("host", self.address, self.ports[0])]
        seen = self.router.out((self.address, self.ports[0]), REFLECTOR)
        if seen and seen[0] != self.address:
            found.append(Candidate("reflexive", *seen))
        return found

    def begin(self, config: Config) -> None:
        self.punch = Punch(config, self.net.now)
        self.act(self.punch.tick(self.net.now))

    def act(self, actions: list[Action]) -> None:
        assert self.punch is not None
        for action in actions:
            if isinstance(action, Send):
                self.sent.append(action)
                self.net.send(self, action)
            elif isinstance(action, OpenSockets):
                self.ports += range(20000, 20000 + action.count)
                self.act(self.punch.opened(action.count, self.net.now))
            elif self.ended is None:
                self.ended, self.ended_at = action, self.net.now
        self._timer += 1
        if self.ended is None:
            timer, punch = self._timer, self.punch

            def tick() -> None:
                if timer == self._timer:
                    self.act(punch.tick(self.net.now))

            self.net.at(max(punch.wake, self.net.now + 1e-4), tick)

    def receive(self, via: int, source: Endpoint, data: bytes) -> None:
        self.heard.append(data)
        if self.punch:
            self.act(self.punch.received(via, source, data, self.net.now))

    def through_router(self, source: Endpoint, port: int, data: bytes) -> None:
        inside = self.router.into(source, port)
        if inside and inside[1] in self.ports:
            self.receive(self.ports.index(inside[1]), source, data)


class Net:
    """Two sides and what is between them."""

    def __init__(self, a: Kind, b: Kind, *, seed: int = 0, input_drop: bool = True, loss: float = 0.0,
                 double: float = 0.0, late: float = 0.0, latency: float = 0.02, relay: bool = True) -> None:
        self.now = 100.0
        self.rng = random.Random(seed)
        self.tapped: list[tuple[Endpoint, Endpoint, bytes]] = []  # what an attacker on the way could record
        self._loss, self._double, self._late, self._latency = loss, double, late, latency
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self._relay = relay
        addresses = {"a": ("198.51.100.2", "10.1.0.2"), "b": ("203.0.113.2", "10.2.0.2")}
        self.sides = {
            name: Side(self, name, Router(kind, public, self.rng, input_drop=input_drop),
                       public if kind == "none" else private)
            for (name, (public, private)), kind in zip(addresses.items(), (a, b), strict=True)
        }

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._count), what))

    def send(self, side: Side, action: Send) -> None:
        other = self.sides["b" if side.name == "a" else "a"]
        if action.via == RELAY:
            assert action.to == RELAY_ENDPOINT
            self._carry(lambda: other.receive(RELAY, RELAY_ENDPOINT, action.data))
            return
        source = side.router.out((side.address, side.ports[action.via]), action.to)
        if source is None or action.ttl == 1:
            return
        if action.ttl is not None and action.ttl <= 2:  # it dies at the router in the middle
            return
        self.tapped.append((source, action.to, action.data))
        if action.to[0] == other.router.address:
            self._carry(lambda: other.through_router(source, action.to[1], action.data))

    def _carry(self, arrive: Callable[[], None]) -> None:
        """Across the middle, with what can happen to a packet there."""
        for _ in range(2 if self.rng.random() < self._double else 1):
            if self.rng.random() >= self._loss:
                extra = self.rng.random() * 0.3 if self.rng.random() < self._late else 0.0
                self.at(self.now + self._latency + extra, arrive)

    def run(self, *, policy: Policy = "prefer-direct", limit: float = 10.0, go: bool = True) -> Net:
        """Offer, answer, punch: until both have ended."""
        a, b = self.sides["a"], self.sides["b"]
        of = {side.name: side.candidates() for side in (a, b)}
        kinds = {side.name: SEEN_AS[side.router.kind] for side in (a, b)}

        def config(role: Literal["initiator", "responder"], me: str, them: str) -> Config:
            return Config(role, KEY, of[them], kinds[me], kinds[them], policy, limit=limit, seed=self.rng.randrange(99))

        def relay_ready(side: Side) -> None:
            assert side.punch is not None
            side.act(side.punch.relay_ready(self.now))

        def start_a() -> None:
            a.begin(config("initiator", "a", "b"))
            if self._relay:
                self.at(self.now + 0.05, lambda: relay_ready(a))
            if go:
                self.at(self.now + 0.03, lambda: b.act(b.punch.go(self.now)) if b.punch else None)

        b.begin(config("responder", "b", "a"))
        if self._relay:
            self.at(self.now + 0.05, lambda: relay_ready(b))
        self.at(self.now + 0.03, start_a)
        self.pump(lambda: a.ended is not None and b.ended is not None)
        return self

    def pump(self, until: Callable[[], bool] = lambda: False, limit: float = 60.0) -> None:
        end = self.now + limit
        while self._events and not until() and self.now < end:
            self.now, _, what = heapq.heappop(self._events)
            what()
