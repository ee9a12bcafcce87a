# SPDX-License-Identifier: GPL-2.0-or-later
"""Nameplates: short numbers under which two hosts that want to pair find each other, once.

The number says where to meet and is not secret; the words of the code never come here.
"""

from __future__ import annotations

import secrets
from typing import Generic, TypeVar

from tunnel.rendezvous.limits import Limits

Host = TypeVar("Host")


class Nameplates(Generic[Host]):
    """Who waits under which number. Each number has one visitor, after which it is gone."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._waiting: dict[str, tuple[Host, str]] = {}

    def open(self, host: Host, address: str) -> str | None:
        """A number for a host from that address, or None if there are too many."""
        own = sum(1 for _, other in self._waiting.values() if other == address)
        if len(self._waiting) >= self._limits.nameplates or own >= self._limits.nameplates_per_address:
            return None
        # At random, so that yesterday's code does not meet today's host; from few numbers, so that it is short to say.
        numbers = range(1, max(100, 10 * len(self._waiting)))
        number = str(secrets.choice([n for n in numbers if str(n) not in self._waiting]))
        self._waiting[number] = (host, address)
        return number

    def visit(self, number: str) -> Host | None:
        """Who waits there; the number is used up by asking."""
        return self._waiting.pop(number, (None, ""))[0]

    def close(self, number: str, host: Host) -> None:
        """Whoever waited there has gone; safe to repeat."""
        if self._waiting.get(number, (None, ""))[0] is host:
            del self._waiting[number]

    def __len__(self) -> int:
        return len(self._waiting)
