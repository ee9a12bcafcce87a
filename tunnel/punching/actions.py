# SPDX-License-Identifier: GPL-2.0-or-later
"""The inputs and outputs of the punching state machine."""

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

RELAY = -1  # the socket number that stands for the relay
RELAY_ENDPOINT: Endpoint = ("relay", 0)  # and the endpoint that goes with it
RELAY_PAIR: Where = (RELAY, RELAY_ENDPOINT)


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that is known before the first packet."""

    role: Role
    key: bytes = dataclasses.field(repr=False)
    remote: Sequence[Candidate]
    local_nat: nat.Kind = "cone"
    remote_nat: nat.Kind = "cone"
    policy: Policy = "prefer-direct"
    opener_ttl: int = 2
    limit: float = 10.0  # seconds until the punch is given up
    patience: float = 60.0  # seconds, at most, to wait for a direct path before the relay is used
    wide: bool = True  # whether both sides can open sockets; otherwise a guess hits with a probability of 1 in 64,512
    seed: int | None = None


@dataclasses.dataclass(frozen=True)
class Send:
    """Send a datagram: from socket 0, from an additional one, or through the relay; with this TTL, or the default."""

    via: int
    to: Endpoint
    data: bytes
    ttl: int | None = None


@dataclasses.dataclass(frozen=True)
class OpenSockets:
    """Open this many more sockets and call `opened`; they are 1, 2, ..."""

    count: int


@dataclasses.dataclass(frozen=True)
class Done:
    """The path has been found and both sides know it."""

    kind: Literal["direct", "relay"]
    via: int
    endpoint: Endpoint
    rtt: float  # seconds
    reason: str


@dataclasses.dataclass(frozen=True)
class Failed:
    """No path has been found."""

    reason: str


Action = Send | OpenSockets | Done | Failed
