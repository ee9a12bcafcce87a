# SPDX-License-Identifier: GPL-2.0-or-later
"""The datagrams that two peers punch with: how they are made, authenticated and told from replays. Pure functions.

    "MGP1" | type u8 | role u8 | sequence u64 | echo u64 | MAC 16

The MAC is HMAC-SHA256 under the session's probe key over everything before it, truncated to 16 bytes (RFC 2104 section
5). The role is the sender's: a probe that is reflected is not a probe from the peer. Each probe has a sequence number
of its own, so that none counts twice. WireGuard, which takes over the port, recognizes its datagrams by a first byte of
1 to 4 and drops these.

| type     | echo                             | says                                              |
| -------- | -------------------------------- | ------------------------------------------------- |
| PING     | 0                                | do you hear me?                                   |
| PONG     | sequence of the PING             | yes                                               |
| NOMINATE | sequence of a PONG on this path  | (initiator) let us use this path                  |
| ACCEPT   | sequence of the NOMINATE         | (responder) agreed                                |
| CLOSE    | sequence of the ACCEPT           | (initiator) the socket becomes WireGuard's now    |
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import struct
from typing import Literal, NamedTuple

Role = Literal["initiator", "responder"]

_BODY = struct.Struct("!4sBBQQ")
_MAGIC = b"MGP1"
_MAC_SIZE = 16
_ROLES: tuple[Role, Role] = ("initiator", "responder")

SIZE = _BODY.size + _MAC_SIZE
WINDOW = 8192  # sequence numbers back to which a late probe is still told from a replay


class Type(enum.IntEnum):
    PING = 1
    PONG = 2
    NOMINATE = 3
    ACCEPT = 4
    CLOSE = 5


class Probe(NamedTuple):
    type: Type
    role: Role
    sequence: int
    echo: int


def make(key: bytes, probe: Probe) -> bytes:
    body = _BODY.pack(_MAGIC, probe.type, _ROLES.index(probe.role), probe.sequence, probe.echo)
    return body + _mac(key, body)


def parse(key: bytes, data: bytes) -> Probe | None:
    """The probe in a datagram; None if there is none, or it is not from this session."""
    if len(data) != SIZE or not data.startswith(_MAGIC):
        return None
    if not hmac.compare_digest(data[-_MAC_SIZE:], _mac(key, data[:-_MAC_SIZE])):
        return None
    _, kind, role, sequence, echo = _BODY.unpack_from(data)
    try:
        return Probe(Type(kind), _ROLES[role], sequence, echo)
    except (ValueError, IndexError):  # made by the peer itself, but by another version of it
        return None


class Replays:
    """Which of the peer's sequence numbers have been seen: a sliding window, as in RFC 6479."""

    def __init__(self) -> None:
        self._highest = 0
        self._bits = 0  # bit n: highest - n has been seen

    def fresh(self, sequence: int) -> bool:
        """Whether this number is seen for the first time; one older than the window counts as seen."""
        ahead = sequence - self._highest
        if ahead > 0:
            self._bits = (self._bits << min(ahead, WINDOW) | 1) & ((1 << WINDOW) - 1)
            self._highest = sequence
            return True
        if -ahead >= WINDOW or self._bits >> -ahead & 1:
            return False
        self._bits |= 1 << -ahead
        return True


def _mac(key: bytes, body: bytes) -> bytes:
    return hmac.digest(key, body, hashlib.sha256)[:_MAC_SIZE]
