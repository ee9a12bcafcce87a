# SPDX-License-Identifier: GPL-2.0-or-later
"""What to expect of a pair of NATs: how to look for a direct path, for how long, and how to describe it."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from tunnel.candidates import nat

Policy = Literal["prefer-direct", "direct-only", "relay-only"]
POLICIES: tuple[Policy, ...] = get_args(Policy)


@dataclasses.dataclass(frozen=True)
class Outlook:
    """`wait`: seconds after which a working relay is used. `search`: this side's part in birthday probing."""

    wait: float
    search: Literal["wide", "narrow"] | None
    relay_reason: str
    here: nat.Kind
    there: nat.Kind

    @property
    def hopeless(self) -> bool:
        """Whether only the peer's own address, in the same network, could still answer."""
        return self.wait < 1.0

    def direct_reason(self, kind: str, via: int, guessed: int) -> str:
        """Why a direct path over this kind of candidate worked."""
        nats = f"{_NAMES[self.here]} here, {_NAMES[self.there]} there"
        if kind == "host":
            return "the peer's own address answers"
        if kind == "ipv6":
            return "the peer's IPv6 address answers"
        if via > 0 or kind == "guessed":
            return f"{nats}; a guessed port worked" + (f" after {guessed} probes" if guessed else "")
        return nats


_NAMES: dict[nat.Kind, str] = {
    "open": "no NAT", "cone": "a cone NAT", "symmetric": "a symmetric NAT", "blocked": "no UDP",
}


def outlook(here: nat.Kind, there: nat.Kind) -> Outlook:
    """What to expect of these two NATs."""
    kinds = {here, there}
    if here == "blocked":
        return Outlook(0.3, None, "this host's network blocks outgoing UDP", here, there)
    if there == "blocked":
        return Outlook(0.3, None, "the peer's network blocks outgoing UDP", here, there)
    if kinds == {"symmetric"}:
        return Outlook(0.3, None, "both NATs are symmetric", here, there)
    if kinds == {"symmetric", "cone"}:
        wait = 6.0
        search: Literal["wide", "narrow"] = "wide" if here == "symmetric" else "narrow"
    else:
        wait, search = 2.0, None  # type: ignore[assignment]
    return Outlook(wait, search, f"no direct path was found within {wait:g} s", here, there)
