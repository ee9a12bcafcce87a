# SPDX-License-Identifier: GPL-2.0-or-later
"""What kind of NAT this host is behind, from what reflectors saw. Pure.

Only the mapping behaviour matters here (RFC 4787 section 4.1), and only that can be determined with two reflectors:
which senders a NAT lets in is found out by trying.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Literal, get_args

Endpoint = tuple[str, int]
Kind = Literal["open", "cone", "symmetric", "blocked"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclasses.dataclass(frozen=True)
class Observation:
    """What one reflector answered to a request that was sent from `local`."""

    reflector: Endpoint
    local: Endpoint
    seen: Endpoint


@dataclasses.dataclass(frozen=True)
class Nat:
    """A host's NAT.

    open: no translation. cone: one mapping for all destinations. symmetric: one for each. blocked: no UDP gets through.
    """

    kind: Kind
    detail: str


def classify(observations: Collection[Observation]) -> Nat:
    """The NAT behind which all of these requests were sent, from one socket and over IPv4."""
    if not observations:
        return Nat("blocked", "no reflector answered over UDP")
    reflectors = len({each.reflector for each in observations})
    if all(each.seen == each.local for each in observations):
        return Nat("open", "reflectors see this host's own address and port")
    mappings = {each.seen for each in observations}
    if len(mappings) > 1:
        return Nat("symmetric", f"{reflectors} reflectors saw {len(mappings)} mappings of one port")
    if reflectors == 1:
        return Nat("cone", "one mapping; only one reflector answered, so this is a guess")
    return Nat("cone", f"{reflectors} reflectors saw the same mapping")
