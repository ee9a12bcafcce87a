# SPDX-License-Identifier: GPL-2.0-or-later
"""How two peers find a path through both their NATs: a state machine without I/O. Its table is at the end of the file.

Both sides run it with the same probe key. Its inputs are datagrams, time, and notice that what it asked for has been
done; its outputs are actions for the owner of the sockets (`tunnel.punching.prober`). The initiator chooses the path,
the responder agrees.

Why it begins as it does: a router that does not drop unexpected packets makes a conntrack entry for the peer's first
packet, and that entry moves this host's own mapping to another port. So the responder first opens its NAT with packets
whose TTL expires behind its own router, before the initiator even knows where to send to, and sends no others until it
knows that the initiator has begun.
"""

from __future__ import annotations

import dataclasses
import enum

from tunnel.candidates.candidate import private
from tunnel.candidates.nat import Endpoint
from tunnel.candidates.outlook import Outlook, outlook
from tunnel.punching import probes
from tunnel.punching.actions import (
    RELAY,
    RELAY_ENDPOINT,
    RELAY_PAIR,
    Action,
    Config,
    Done,
    Failed,
    OpenSockets,
    Send,
    Where,
)
from tunnel.punching.birthday import WIDE_SOCKETS, Search
from tunnel.punching.probes import Probe, Type

# Seconds.
INTERVAL = 0.1  # between two probes to one target
SLOWLY = 3.0  # after this long, the interval is five times as long
START_DELAY = 0.5  # a responder that receives neither a probe nor `go` begins after this
NOMINATE_INTERVAL = 0.05
HOPELESS_LIMIT = 2.0
LINGER = 0.4  # a responder answers repeated nominations for this long

# These limits keep us from being a scanner for whoever sends us candidates.
TARGET_PINGS = 40  # to one target
HOST_PINGS = 10  # to one address in a private network
LEARNED_MAX = 32  # peer-reflexive candidates
PENDING_MAX = 4096  # probes that wait for an answer
NOMINATIONS = 20


class State(enum.Enum):
    OPENING = "opening"
    CHECKING = "checking"
    NOMINATING = "nominating"
    AGREED = "agreed"
    DONE = "done"
    FAILED = "failed"


@dataclasses.dataclass
class Pair:
    """One way to the peer: from a socket to an endpoint."""

    kind: str
    left: int  # pings that may still be sent
    due: float
    learned: bool = False
    rtt: float | None = None  # of a ping that was answered
    pong: int = 0  # the sequence number of that answer


class Punch:
    """One side of it. `tick` must be called at `wake` at the latest; each input returns what is to be done next."""

    def __init__(self, config: Config, now: float) -> None:
        self.state = State.OPENING if config.role == "responder" else State.CHECKING
        self.begun = now
        self.wake = now
        self.rejected = 0  # datagrams that were not fresh probes from the peer
        self.outlook: Outlook = outlook(config.local_nat, config.remote_nat)
        self._config = config
        self._search = Search(config, self.outlook, now)
        self._replays = probes.Replays()
        self._sequence = 0
        self._pairs: dict[Where, Pair] = {}
        self._pending: dict[int, tuple[Where, float]] = {}
        self._chosen: Where | None = None
        self._nominated: dict[int, Where] = {}
        self._next_nomination = 0.0
        self._agreed_at = 0.0
        # If no direct path is to be expected, there is no need to wait long before giving up on one.
        self._limit = min(config.limit, HOPELESS_LIMIT if config.policy == "direct-only" and self.outlook.hopeless
                          else config.limit)
        if config.policy != "relay-only":
            for each in config.remote:
                self._pairs[0, each.endpoint] = Pair(each.kind, _pings_to(each.address), now)

    # --- Inputs ---

    def go(self, now: float) -> list[Action]:
        """The initiator has said through the rendezvous that it has begun."""
        self._check(now)
        return self.tick(now)

    def relay_ready(self, now: float) -> list[Action]:
        """What is sent through the relay now reaches the peer, if the peer has joined too."""
        if self._config.policy != "direct-only":
            self._pairs.setdefault((RELAY, RELAY_ENDPOINT), Pair("relay", TARGET_PINGS, now))
        return self.tick(now)

    def opened(self, count: int, now: float) -> list[Action]:
        """This many sockets have been opened."""
        self._search.opened(count)
        return self.tick(now)

    def received(self, via: int, source: Endpoint, data: bytes, now: float) -> list[Action]:
        """A datagram has arrived."""
        if self.state in (State.DONE, State.FAILED):
            return []
        probe = probes.parse(self._config.key, data)
        if probe is None or probe.role == self._config.role or not self._replays.fresh(probe.sequence):
            self.rejected += 1
            return []
        where = (via, source)
        if not self._allowed(where):
            return []
        actions: list[Action] = []
        if probe.type is Type.PING:
            actions += self._pinged(where, probe, now)
        elif probe.type is Type.PONG:
            self._answered(where, probe, now)
        elif probe.type is Type.NOMINATE and self._config.role == "responder":
            actions += self._agree(where, probe, now)
        elif probe.type is Type.ACCEPT and self._config.role == "initiator":
            actions += self._accepted(where, probe)
        elif probe.type is Type.CLOSE and self.state is State.AGREED and where == self._chosen:
            actions += self._done()
        return actions + self.tick(now)

    def tick(self, now: float) -> list[Action]:
        """Time has passed."""
        if self.state in (State.DONE, State.FAILED):
            return []
        self.wake = now + INTERVAL
        if self.state is State.AGREED:
            self._wake(self._agreed_at + LINGER)
            return self._done() if now >= self._agreed_at + LINGER else []
        if now >= self.begun + self._limit:
            return self._failed()
        if self.state is State.OPENING and now < self.begun + START_DELAY:
            return [*self._openers(now), *self._pings(now, only=RELAY)]
        self._check(now)
        actions = self._pings(now)
        if self._config.policy != "relay-only" and self.state is State.CHECKING:
            actions += self._searched(now)
        if self._config.role == "initiator":
            actions += self._nominate(now)
        return actions

    # --- Probing ---

    def _check(self, now: float) -> None:
        """From now on send probes that may reach the peer's router."""
        if self.state is State.OPENING:
            self.state = State.CHECKING
            for pair in self._pairs.values():
                pair.due = now

    def _openers(self, now: float) -> list[Action]:
        """Open this side's NAT for the peer, with packets that never reach its router."""
        actions: list[Action] = []
        for (via, endpoint), pair in self._pairs.items():
            if via == 0 and now >= pair.due and not private(endpoint[0]):
                pair.due = now + INTERVAL
                actions.append(self._ping((via, endpoint), now, self._config.opener_ttl))
        return actions

    def _pings(self, now: float, only: int | None = None) -> list[Action]:
        actions: list[Action] = []
        interval = INTERVAL if now < self.begun + SLOWLY else INTERVAL * 5
        for where, pair in self._pairs.items():
            if pair.left <= 0 or (only is not None and where[0] != only):
                continue
            if now >= pair.due:
                pair.due = now + interval
                pair.left -= 1
                actions.append(self._ping(where, now))
            self._wake(pair.due)
        return actions

    def _ping(self, where: Where, now: float, ttl: int | None = None) -> Send:
        self._sequence += 1
        self._pending[self._sequence] = (where, now)
        while len(self._pending) > PENDING_MAX:
            del self._pending[next(iter(self._pending))]
        return self._send(where, Type.PING, ttl=ttl, sequence=self._sequence)

    def _send(self, where: Where, kind: Type, echo: int = 0, ttl: int | None = None, sequence: int = 0) -> Send:
        if not sequence:
            self._sequence += 1
            sequence = self._sequence
        data = probes.make(self._config.key, Probe(kind, self._config.role, sequence, echo))
        return Send(where[0], where[1], data, ttl)

    def _searched(self, now: float) -> list[Action]:
        """Birthday probing, if it is worthwhile."""
        actions: list[Action] = [OpenSockets(WIDE_SOCKETS)] if self._search.wants_sockets(now) else []
        actions += [self._ping(where, now, ttl) for where, ttl in self._search.due(now)]
        self._wake(self._search.wake(now))
        return actions

    # --- What the peer said ---

    def _pinged(self, where: Where, probe: Probe, now: float) -> list[Action]:
        actions: list[Action] = [self._send(where, Type.PONG, probe.sequence)]
        if where[0] != RELAY:
            self._check(now)  # the initiator has begun
        pair = self._pairs.get(where)
        if pair is None:
            if sum(each.learned for each in self._pairs.values()) >= LEARNED_MAX:
                return actions
            left = TARGET_PINGS if where[0] == RELAY else _pings_to(where[1][0])
            pair = self._pairs[where] = Pair("learned", left, now + INTERVAL, learned=True)
        elif pair.rtt is not None:
            return actions
        pair.due = now + INTERVAL
        return [*actions, self._ping(where, now)]  # the way back can be checked at once

    def _answered(self, where: Where, probe: Probe, now: float) -> None:
        asked = self._pending.pop(probe.echo, None)
        if asked is None or asked[0] != where:
            return
        # A guessed port becomes a pair only here.
        pair = self._pairs.setdefault(where, Pair("guessed", TARGET_PINGS, now + INTERVAL))
        if pair.rtt is None:
            pair.rtt = now - asked[1]
            pair.pong = probe.sequence

    # --- Agreeing ---

    def _best(self, now: float) -> Where | None:
        """The path to use as things stand: the fastest direct one, or the relay if there will be none."""
        checked = [(where, pair) for where, pair in self._pairs.items() if pair.rtt is not None]
        direct = [(pair.rtt, where) for where, pair in checked if where[0] != RELAY]
        if direct:
            return min(direct)[1]
        wait = 0.0 if self._config.policy == "relay-only" else min(self.outlook.wait, self._config.patience)
        return RELAY_PAIR if any(where == RELAY_PAIR for where, _ in checked) and now >= self.begun + wait else None

    def _nominate(self, now: float) -> list[Action]:
        best = self._best(now)
        if best is None:
            return []
        if self._chosen is None or (self._chosen[0] == RELAY and best[0] != RELAY):
            self._chosen, self._next_nomination = best, now
            self._nominated.clear()
            self.state = State.NOMINATING
        self._wake(self._next_nomination)
        if now < self._next_nomination:
            return []
        pair = self._pairs[self._chosen]
        if len(self._nominated) >= NOMINATIONS:  # it has worked, and no longer does
            pair.rtt, self._chosen, self.state = None, None, State.CHECKING
            return []
        self._next_nomination = now + NOMINATE_INTERVAL
        self._wake(self._next_nomination)
        send = self._send(self._chosen, Type.NOMINATE, pair.pong)
        self._nominated[self._sequence] = self._chosen
        return [send]

    def _agree(self, where: Where, probe: Probe, now: float) -> list[Action]:
        if self.state is not State.AGREED or where != self._chosen:
            self._chosen = where
            self._pairs.setdefault(where, Pair("learned", 0, now, learned=True))
        self.state, self._agreed_at = State.AGREED, now
        return [self._send(where, Type.ACCEPT, probe.sequence)]

    def _accepted(self, where: Where, probe: Probe) -> list[Action]:
        if self._nominated.get(probe.echo) != where or self.state is not State.NOMINATING:
            return []
        return [self._send(where, Type.CLOSE, probe.sequence), self._send(where, Type.CLOSE, probe.sequence),
                *self._done()]

    def _allowed(self, where: Where) -> bool:
        if where[0] == RELAY:
            return self._config.policy != "direct-only" and where == RELAY_PAIR
        return self._config.policy != "relay-only"

    def _done(self) -> list[Action]:
        assert self._chosen is not None  # noqa: S101
        self.state = State.DONE
        via, endpoint = self._chosen
        rtt = self._pairs[self._chosen].rtt or 0.0
        if via == RELAY:
            reason = "the relay was asked for" if self._config.policy == "relay-only" else self.outlook.relay_reason
            return [Done("relay", via, endpoint, rtt, reason)]
        kind = self._pairs[self._chosen].kind
        return [Done("direct", via, endpoint, rtt, self.outlook.direct_reason(kind, via, self._search.guessed))]

    def _failed(self) -> list[Action]:
        self.state = State.FAILED
        if self._config.policy == "relay-only":
            return [Failed("the relay was asked for, but the peer was not heard through it")]
        reason = self.outlook.relay_reason
        if self._config.policy != "direct-only":
            reason += ", and the peer was not heard through the relay" if RELAY_PAIR in self._pairs else \
                ", and there is no relay"
        return [Failed(reason)]

    def _wake(self, when: float) -> None:
        self.wake = min(self.wake, when)


def _pings_to(address: str) -> int:
    return HOST_PINGS if private(address) else TARGET_PINGS


# | state      | input                               | next       | output                                             |
# | ---------- | ----------------------------------- | ---------- | -------------------------------------------------- |
# | OPENING    | tick                                | OPENING    | openers (low TTL) every 100 ms; PING to the relay  |
# |            | PING heard directly, go, 0.5 s over | CHECKING   | PONG; PING to all targets                          |
# | CHECKING   | tick                                | CHECKING   | PING to all targets every 100 ms                   |
# |            | PING                                | CHECKING   | PONG; PING back (learns a peer-reflexive target)   |
# |            | 0.15 s over, symmetric here         | CHECKING   | OpenSockets(256), then openers from all of them    |
# |            | 0.25 s over, symmetric there        | CHECKING   | PING to guessed ports, 400/s, 2,048 at most        |
# |            | PONG, direct (initiator)            | NOMINATING | NOMINATE                                           |
# |            | PONG by relay, and direct is        | NOMINATING | NOMINATE                                           |
# |            |   hopeless or had its time          |            |                                                    |
# |            | NOMINATE (responder)                | AGREED     | ACCEPT                                             |
# | NOMINATING | tick                                | NOMINATING | NOMINATE every 50 ms                               |
# |            | PONG, direct, while relay nominated | NOMINATING | NOMINATE the direct one                            |
# |            | 20 nominations unanswered           | CHECKING   |                                                    |
# |            | ACCEPT                              | DONE       | CLOSE twice; Done                                  |
# | AGREED     | NOMINATE                            | AGREED     | ACCEPT                                             |
# |            | CLOSE, 0.4 s of silence             | DONE       | Done                                               |
# | any        | the limit is over                   | FAILED     | Failed                                             |
# | any        | forged, replayed, late, reflected   | the same   | nothing                                            |
