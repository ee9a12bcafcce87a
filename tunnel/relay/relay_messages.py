# SPDX-License-Identifier: GPL-2.0-or-later
"""What is said to a relay before it forwards: tokens and the exchange that proves them. Pure functions, both sides.

The rendezvous gives each end of a session a *token*: a claim that anybody may see, and a key that only that end and
the relay know. An end joins by two JOINs: the first is answered with a CHALLENGE, a cookie bound to the address that
it came from, and the second brings the cookie back. A recorded JOIN is thus of no use from another address, and the
answer is never longer than the request.

| message   | bytes                                                                    |
| --------- | ------------------------------------------------------------------------ |
| JOIN      | `MRL1`, 1, claim, cookie 16, number u64, MAC 16                          |
| claim     | session 16, own identity 16, peer's identity 16, expiry u64              |
| CHALLENGE | `MRL1`, 2, number u64 of the JOIN, cookie 16, MAC 16                     |
| JOINED    | `MRL1`, 3, number u64 of the JOIN, u8: 1 if the peer is there too, MAC 16 |
| REFUSED   | `MRL1`, 4, number u64 of the JOIN, reason u8, MAC 16                     |
| LEAVE     | as JOIN with 5 in place of 1, and the cookie that was good for that      |

A MAC is HMAC-SHA256 under the token's key, truncated to 16 bytes. Identities appear as hashes. Over TCP each message
and each datagram is prefixed with its length, u16.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import struct
from typing import NamedTuple

from migrator.base.strict_json import Malformed

MAGIC = b"MRL1"
KEY_SIZE = 32
COOKIE_SIZE = 16
NO_COOKIE = bytes(COOKIE_SIZE)
MAC_SIZE = 16
SHORTEST = 16  # bytes of a datagram: WireGuard's have 32 and more, a probe 38, the messages here 30 and more

_CLAIM = struct.Struct("!16s16s16sQ")
_JOIN = struct.Struct(f"!4sB{_CLAIM.size}s16sQ")
_CHALLENGE = struct.Struct("!4sBQ16s")
_ANSWER = struct.Struct("!4sBQB")

CLAIM_SIZE = _CLAIM.size
JOIN_SIZE = _JOIN.size + MAC_SIZE
FRAME = struct.Struct("!H")


class Type(enum.IntEnum):
    JOIN = 1
    CHALLENGE = 2
    JOINED = 3
    REFUSED = 4
    LEAVE = 5


class Refusal(enum.IntEnum):
    """Why a relay did not admit an end."""

    EXPIRED = 1
    FULL = 2
    QUOTA = 3


class Claim(NamedTuple):
    """Whom a token is for."""

    session: bytes
    own: bytes
    peer: bytes
    expires: int  # seconds since 1970

    def pack(self) -> bytes:
        return _CLAIM.pack(*self)


class Join(NamedTuple):
    """A JOIN or a LEAVE."""

    claim: Claim
    packed: bytes
    cookie: bytes
    number: int
    leaves: bool = False


class Answer(NamedTuple):
    """What the relay answered; of `cookie`, `present` and `refusal` only the one that belongs to `type` is valid."""

    type: Type
    number: int
    cookie: bytes = b""
    present: bool = False
    refusal: Refusal | None = None


def identity_hash(identity: bytes) -> bytes:
    """How a claim identifies an identity."""
    return hashlib.blake2b(identity, digest_size=16, person=b"migrator-relay").digest()


def token_key(secret: bytes, claim: bytes) -> bytes:
    """The key of the token with this packed claim; `secret` never leaves the relay."""
    return hmac.digest(secret, b"token\0" + claim, hashlib.sha256)


def cookie(secret: bytes, address: tuple[str, int], window: int) -> bytes:
    """What a JOIN from this address has to contain during a window of time."""
    said = f"cookie\0{address[0]}\0{address[1]}\0{window}".encode()
    return hmac.digest(secret, said, hashlib.sha256)[:COOKIE_SIZE]


def join(claim: bytes, key: bytes, number: int, brought: bytes = NO_COOKIE, *, leave: bool = False) -> bytes:
    """A JOIN, or a LEAVE; `number` identifies its answer."""
    return _sealed(key, _JOIN.pack(MAGIC, Type.LEAVE if leave else Type.JOIN, claim, brought, number))


def parse_join(data: bytes) -> Join | None:
    """The JOIN or LEAVE in a datagram, not authenticated yet; None if it is neither."""
    if len(data) != JOIN_SIZE or not data.startswith(MAGIC) or data[4] not in (Type.JOIN, Type.LEAVE):
        return None
    _, kind, packed, brought, number = _JOIN.unpack_from(data)
    return Join(Claim(*_CLAIM.unpack(packed)), packed, brought, number, kind == Type.LEAVE)


def proved(data: bytes, key: bytes) -> bool:
    """Whether a message ends with the MAC of what precedes it."""
    if len(data) <= MAC_SIZE:
        return False
    return hmac.compare_digest(data[-MAC_SIZE:], _mac(key, data[:-MAC_SIZE]))


def challenge(key: bytes, number: int, brought: bytes) -> bytes:
    return _sealed(key, _CHALLENGE.pack(MAGIC, Type.CHALLENGE, number, brought))


def joined(key: bytes, number: int, *, present: bool) -> bytes:
    return _sealed(key, _ANSWER.pack(MAGIC, Type.JOINED, number, present))


def refused(key: bytes, number: int, reason: Refusal) -> bytes:
    return _sealed(key, _ANSWER.pack(MAGIC, Type.REFUSED, number, reason))


def parse_answer(data: bytes, key: bytes) -> Answer | None:
    """What the relay answered, authenticated by its MAC; None for anything else."""
    if not data.startswith(MAGIC) or not proved(data, key):
        return None
    kind, body = data[4], data[:-MAC_SIZE]
    if kind == Type.CHALLENGE and len(body) == _CHALLENGE.size:
        _, _, number, brought = _CHALLENGE.unpack(body)
        return Answer(Type.CHALLENGE, number, cookie=brought)
    if len(body) != _ANSWER.size:
        return None
    _, _, number, value = _ANSWER.unpack(body)
    if kind == Type.JOINED and value in (0, 1):
        return Answer(Type.JOINED, number, present=bool(value))
    if kind == Type.REFUSED and value in tuple(Refusal):
        return Answer(Type.REFUSED, number, refusal=Refusal(value))
    return None


def framed(datagram: bytes | memoryview, segment: int = 0) -> bytes:
    """For TCP: a datagram, or several of `segment` bytes each (the last may be shorter), each after its length."""
    if not segment or len(datagram) <= segment:
        return FRAME.pack(len(datagram)) + datagram
    head = FRAME.pack(segment)
    parts: list[bytes | memoryview] = []
    whole = len(datagram) - len(datagram) % segment
    for start in range(0, whole, segment):
        parts += (head, datagram[start : start + segment])
    if whole < len(datagram):
        parts += (FRAME.pack(len(datagram) - whole), datagram[whole:])
    return b"".join(parts)


def frames(data: bytes | bytearray | memoryview, shortest: int = 0) -> tuple[list[memoryview], int]:
    """The complete datagrams at the start of what TCP has delivered, and how many bytes they took.

    Raises Malformed if one has fewer bytes than `shortest`, since there could be very many of these.
    """
    view, found, at = memoryview(data), [], 0
    while at + FRAME.size <= len(view):
        end = at + FRAME.size + (view[at] << 8 | view[at + 1])
        if end > len(view):
            break
        if end - at - FRAME.size < shortest:
            raise Malformed("a datagram is too short")
        found.append(view[at + FRAME.size : end])
        at = end
    return found, at


def _sealed(key: bytes, body: bytes) -> bytes:
    return body + _mac(key, body)


def _mac(key: bytes, body: bytes) -> bytes:
    return hmac.digest(key, body, hashlib.sha256)[:MAC_SIZE]
