# SPDX-License-Identifier: GPL-2.0-or-later
"""A session's names and numbers inside its tunnel, which both sides derive from the session's id alone."""

from __future__ import annotations

import dataclasses
import hashlib
import ipaddress
from typing import Literal

Role = Literal["initiator", "responder"]

SESSION_SIZE = 16  # bytes
PREFIX = "mig-"

# Below the ports that kernels choose for outgoing connections (32768 and up), above those of most services.
_PORTS = range(20000, 30000)


@dataclasses.dataclass(frozen=True)
class Inside:
    """A session as seen from one of its sides."""

    name: str  # of the interface and of the nftables table
    local: str  # tunnel addresses, each the only one of its /128
    remote: str
    tcp_port: int  # of the responder's listener
    echo_port: int  # UDP, on both sides
    listens: bool  # whether this side is the responder


def interface_name(session: bytes) -> str:
    """The name of a session's interface."""
    return PREFIX + _checked(session)[:4].hex()


def inside(session: bytes, role: Role) -> Inside:
    """A session's names and numbers for one of its two sides.

    The addresses are a pair in a unique local /64 of its own (RFC 4193: fd00::/8 and 40 random bits), so that they
    collide neither with the hosts' networks nor with those of other sessions.
    """
    digest = hashlib.sha256(b"migrator tunnel addresses 1\0" + _checked(session)).digest()
    network = b"\xfd" + digest[:7]
    initiator, responder = (str(ipaddress.IPv6Address(network + digest[7:14] + bytes([n]))) for n in (1, 2))
    tcp = int.from_bytes(digest[14:18]) % len(_PORTS)
    echo = (tcp + 1 + int.from_bytes(digest[18:22]) % (len(_PORTS) - 1)) % len(_PORTS)
    listens = role == "responder"
    return Inside(
        name=interface_name(session),
        local=responder if listens else initiator,
        remote=initiator if listens else responder,
        tcp_port=_PORTS[tcp],
        echo_port=_PORTS[echo],
        listens=listens,
    )


def _checked(session: bytes) -> bytes:
    if len(session) != SESSION_SIZE:
        raise ValueError(f"a session's id has {SESSION_SIZE} bytes, not {len(session)}")
    return session
