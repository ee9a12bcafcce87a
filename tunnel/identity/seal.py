# SPDX-License-Identifier: GPL-2.0-or-later
"""Offers, signed by one identity and sealed to another, so that a rendezvous can pass them on and do nothing else.

    "MGS2" | direction (8) | HPKE to the recipient, in which: signature (64) | header (33) | JSON body

HPKE (RFC 9180, mode base, of the `cryptography` package) keeps it secret: only the recipient can open it. Anybody can
seal to a recipient, so only the signature says who has made it: Ed25519 by the sender over both ids, header and body.
It is inside, where nobody else sees whose it is, and names the recipient, who therefore cannot pass an offer on as if
it had been meant for a third party. Not even somebody who holds the recipient's X25519 key can make one in a sender's
name. `direction` is a hash over both ids: it makes nothing secret or safe, but lets the recipient tell an offer of its
own that comes back from garbage.
"""

from __future__ import annotations

import dataclasses
import hashlib
import struct
import time
from typing import Any, Literal

from migrator.base import strict_json
from migrator.base.clock import Clock
from migrator.base.strict_json import Malformed
from tunnel.identity.own_identity import ENCRYPTED_EXTRA, KEY_SIZE, SIGNATURE_SIZE, Identity, PublicIdentity
from tunnel.tunnel_errors import OfferRejected

Role = Literal["initiator", "responder"]

SESSION_SIZE = 16  # bytes
SIZE_MAX = 16 * 1024  # bytes, of a sealed offer
LIFE_MAX = 300.0  # seconds for which an offer may be valid: a replay after a restart reaches no further back
SESSIONS_MAX = 256  # remembered for each peer
VERSION = b"MGS2"  # begins each offer; a message that consists of it alone says which version its sender reads
_FAMILY = b"MGS"  # what offers of every version begin with
_PURPOSE = b"migrator seal 2\0"
_ROLES: tuple[Role, Role] = ("initiator", "responder")
_HEADER = struct.Struct(f">{SESSION_SIZE}sBQd")  # session, role, sequence, expires
_DIRECTION_SIZE = 8
_BOX = len(VERSION) + _DIRECTION_SIZE  # where it begins


@dataclasses.dataclass(frozen=True)
class Sealed:
    """An offer that was opened; `expires` in seconds since 1970."""

    session: bytes
    role: Role
    sequence: int
    expires: float
    body: dict[str, Any]


def seal(identity: Identity, to: PublicIdentity, *, session: bytes, role: Role, sequence: int, expires: float,
         body: dict[str, Any]) -> bytes:
    """Make an offer; the sequence number grows with each one of a session and role.

    Raises ValueError if it gets too large, and Malformed if `to` has an invalid agreement key.
    """
    inner = _HEADER.pack(session, _ROLES.index(role), sequence, expires) + strict_json.dump(body)
    context = _context(identity.public, to)
    box = to.encrypt(identity.sign(context + inner) + inner, context)
    data = VERSION + _direction(box, identity.public, to) + box
    if len(data) > SIZE_MAX or len(session) != SESSION_SIZE:
        raise ValueError("the offer is too large or its session malformed")
    return data


def other_version(data: bytes) -> str | None:
    """The version that a message claims to have, if it is not this one; nothing proves the claim."""
    version = data[len(_FAMILY) : len(VERSION)]
    return version.decode() if data.startswith(_FAMILY) and version.isdigit() and data[:4] != VERSION else None


class Opener:
    """Opens what one peer seals to this host, and remembers what it has seen.

    Keep it for as long as the process lives: a new one would not recognize a replay. `wall` returns the seconds since
    1970.
    """

    def __init__(self, identity: Identity, frm: PublicIdentity, wall: Clock = time.time) -> None:
        self._wall = wall
        self._identity = identity
        self._from = frm
        self._seen: dict[tuple[bytes, Role], tuple[int, float]] = {}

    def open(self, data: bytes, session: bytes | None = None, *, role: Role | None = None) -> Sealed:
        """The offer, or OfferRejected with the reason.

        With `session`, only one of that session; with `role`, only one from a sender in that role, so that what an
        initiator has said is never taken for an answer.
        """
        inner = self._decrypt(data)
        signature, header = inner[:SIGNATURE_SIZE], inner[SIGNATURE_SIZE:]
        if not self._from.verify(signature, _context(self._from, self._identity.public) + header):
            raise OfferRejected(reason="its signature is wrong")
        try:
            found = _parse(header)
        except Malformed as error:
            raise OfferRejected(reason=str(error)) from None
        if session is not None and found.session != session:
            raise OfferRejected(reason="it belongs to another session")
        if role is not None and found.role != role:
            raise OfferRejected(reason=f"it comes from {_article(found.role)}, as this host is one")
        self._remember(found)
        return found

    def _decrypt(self, data: bytes) -> bytes:
        if len(data) > SIZE_MAX:
            raise OfferRejected(reason="it is too large")
        if version := other_version(data):
            own = VERSION[len(_FAMILY) :].decode()
            raise OfferRejected(
                reason=f"it is of version {version}, this host reads {own}: both hosts need the same migrator")
        direction, box = data[len(VERSION) : _BOX], data[_BOX:]
        if len(box) < SIGNATURE_SIZE + _HEADER.size + ENCRYPTED_EXTRA or not data.startswith(VERSION):
            raise OfferRejected(reason="it is not an offer")
        me = self._identity.public
        if direction == _direction(box, me, self._from):
            raise OfferRejected(reason="it is one of this host's own, reflected")
        if direction != _direction(box, self._from, me):
            raise OfferRejected(reason="it is not from this peer to this host")
        try:
            return self._identity.decrypt(box, _context(self._from, me))
        except Malformed as error:
            raise OfferRejected(reason=str(error)) from None

    def _remember(self, found: Sealed) -> None:
        now = self._wall()
        if not now < found.expires <= now + LIFE_MAX:
            left = found.expires - now
            raise OfferRejected(reason=f"it has expired, or the hosts' clocks differ ({left:+.0f} s left)")
        self._seen = {key: (last, until) for key, (last, until) in self._seen.items() if until > now}
        key = (found.session, found.role)
        if key in self._seen and found.sequence <= self._seen[key][0]:
            raise OfferRejected(reason="it is a replay, or older than one that came already")
        if key not in self._seen and len(self._seen) >= SESSIONS_MAX:
            raise OfferRejected(reason="the peer opens too many sessions")
        # Kept for as long as any offer of this session could still be valid, not only this one.
        self._seen[key] = (found.sequence, now + LIFE_MAX)


def _parse(header: bytes) -> Sealed:
    session, role, sequence, expires = _HEADER.unpack_from(header)
    if role >= len(_ROLES):
        raise Malformed("its role is unknown")
    return Sealed(session, _ROLES[role], sequence, expires, strict_json.load(header[_HEADER.size :], SIZE_MAX))


def _direction(box: bytes, frm: PublicIdentity, to: PublicIdentity) -> bytes:
    fresh = box[:KEY_SIZE]
    return hashlib.blake2b(fresh + frm.id + to.id, digest_size=_DIRECTION_SIZE, person=b"migrator-dir").digest()


def _context(frm: PublicIdentity, to: PublicIdentity) -> bytes:
    """What the encryption is bound to and the signature begins with: the purpose, and who speaks to whom."""
    return _PURPOSE + frm.id + to.id


def _article(role: Role) -> str:
    return "an initiator" if role == "initiator" else "a responder"
