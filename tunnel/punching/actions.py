# SPDX-License-Identifier: GPL-2.0-or-later
"""What goes into the punching state machine and what comes out of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from tunnel.candidates import nat
from tunnel.candidates.candidate import Candidate
from tunnel.candidates.nat import Endpoint
from tunnel.candidates.outlook import Policy
from tunnel.punching.probes import Role

# A way to the peer: from which socket, to which endpoint.
Where = tuple[int, Endpoint]

RELAY = -1  # the socket of what goes through the relay
RELAY_ENDPOINT: Endpoint = ("relay", 0)  # and where it is sent to
RELAY_PAIR: Where = (RELAY, RELAY_ENDPOINT)


@dataclasses.dataclass(frozen=True)
class Config:
    """All that is known before the first packet."""

    role: Role
    key: bytes = dataclasses.field(repr=False)
    remote: Sequence[Candidate]
    local_nat: nat.Kind = "cone"
    remote_nat: nat.Kind = "cone"
    policy: Policy = "prefer-direct"
    opener_ttl: int = 2
    limit: float = 10.0  # seconds until it is given up
    patience: float = 60.0  # seconds for a direct path, at most, before the relay is taken
    wide: bool = True  # whether both sides can open sockets; else a guess hits with a chance of 1 in 64,512
    seed: int | None = None


@dataclasses.dataclass(frozen=True)
class Send:
    """Send a datagram: from socket 0, from one of those opened, or through the relay; with this TTL, or the usual."""

    via: int
    to: Endpoint
    data: bytes
    ttl: int | None = None


@dataclasses.dataclass(frozen=True)
class OpenSockets:
    """Open so many more sockets and call `opened`; they are 1, 2, ..."""

    count: int


@dataclasses.dataclass(frozen=True)
class Done:
    """The path is found and both sides know it."""

    kind: Literal["direct", "relay"]
    via: int
    endpoint: Endpoint
    rtt: float  # seconds
    reason: str


@dataclasses.dataclass(frozen=True)
class Failed:
    """There is none."""

    reason: str


Action = Send | OpenSockets | Done | Failed
