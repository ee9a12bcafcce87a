# SPDX-License-Identifier: GPL-2.0-or-later
"""Birthday probing: a symmetric NAT's many mappings against guesses at their ports.

Pure; `tunnel.punching.punch` runs it. A symmetric NAT gives each socket another port towards the peer, and nobody can
predict which. So the side behind it, the *wide* one, opens many sockets; the other, the *narrow* one, guesses ports.
With 256 mappings among 64,512 ports, each guess hits with a probability of 1 in 252: half of all searches end within
175 guesses, 98 of 100 within 1,000.
"""

from __future__ import annotations

import random

from tunnel.candidates.candidate import private
from tunnel.candidates.nat import Endpoint
from tunnel.candidates.outlook import Outlook
from tunnel.punching.actions import Config, Where

# Seconds.
WIDE_AFTER = 0.15  # until the wide side begins
NARROW_AFTER = 0.25  # until the narrow side begins, so that the mappings it looks for have been opened
REOPEN = 3.0  # until the wide side's second round

WIDE_SOCKETS = 256
WIDE_RATE = 2000  # openers per second
NARROW_PROBES = 2048
NARROW_RATE = 400  # guesses per second

NEVER = float("inf")


class Search:
    """One side's part in it."""

    def __init__(self, config: Config, outlook: Outlook, begun: float) -> None:
        self.asked = False  # for sockets
        self.guessed = 0
        self._opener_ttl = config.opener_ttl
        self._target = _target(config)
        self._part = outlook.search if self._target and config.wide else None
        self._begun = begun + (WIDE_AFTER if self._part == "wide" else NARROW_AFTER)
        self._sockets = 0
        self._opened = 0
        self._ports: list[int] = []
        if self._part == "narrow":
            rng = random.Random(config.seed)  # noqa: S311  # guesses a port; no secret
            self._ports = rng.sample(range(1024, 65536), NARROW_PROBES)

    def wants_sockets(self, now: float) -> bool:
        """Whether sockets should be opened now; true once."""
        if self._part != "wide" or self.asked or now < self._begun:
            return False
        self.asked = True
        return True

    def opened(self, count: int) -> None:
        self._sockets = count

    def due(self, now: float) -> list[tuple[Where, int | None]]:
        """What is to be probed now, and with which TTL (None: the default)."""
        if self._target is None or now < self._begun:
            return []
        if self._part == "wide":
            return self._open(now, self._target)
        found: list[tuple[Where, int | None]] = []
        due = min(len(self._ports), int((now - self._begun) * NARROW_RATE) + 1)
        while self.guessed < due:
            found.append(((0, (self._target[0], self._ports[self.guessed])), None))
            self.guessed += 1
        return found

    def _open(self, now: float, target: Endpoint) -> list[tuple[Where, int | None]]:
        """The wide side: let each socket's packet open a mapping in this side's NAT.

        The second round goes all the way, in case the TTL was too small for this side's own NAT.
        """
        since = now - self._begun
        due = min(self._sockets, int(since * WIDE_RATE) + 1)
        if since > REOPEN:
            due = self._sockets + min(self._sockets, int((since - REOPEN) * WIDE_RATE) + 1)
        found: list[tuple[Where, int | None]] = []
        while self._opened < due:
            ttl = self._opener_ttl if self._opened < self._sockets else None
            found.append(((self._opened % self._sockets + 1, target), ttl))
            self._opened += 1
        return found

    def wake(self, now: float) -> float:
        """When there may be something to do again."""
        if self._part is None:
            return NEVER
        if now < self._begun:
            return self._begun
        if self._part == "narrow":
            return now + 2 / NARROW_RATE if self.guessed < len(self._ports) else NEVER
        return now + 0.005 if self._opened < self._sockets else NEVER


def _target(config: Config) -> Endpoint | None:
    """Where the peer's NAT is: one address, and none in a private network, which may be this side's own."""
    for each in config.remote:
        if each.kind == "reflexive" and ":" not in each.address and not private(each.address):
            return each.endpoint
    return None
