# SPDX-License-Identifier: GPL-2.0-or-later
"""Offers, signed by one identity and sealed to another, so that a rendezvous can pass them on and do nothing else.

    "MGS1" | ephemeral X25519 key (32) | direction (8) | ChaCha20-Poly1305 of: signature (64) | header (33) | JSON body

The key comes from two agreements, ephemeral-static and static-static: only the recipient can open it, and only the two
can have made it. The signature covers both ids and the ephemeral key, so that a recipient cannot pass an offer on as
if it had been meant for a third. `direction` is a hash over both ids: it makes nothing secret or safe, but lets the
recipient tell an offer of its own that comes back from one that is garbage.
"""

from __future__ import annotations

import dataclasses
import hashlib
import struct
import time
from typing import Any, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tunnel import wire
from tunnel.errors import OfferRejected
from tunnel.identity import KEY_SIZE, SIGNATURE_SIZE, Identity, PublicIdentity
from tunnel.wire import Malformed

Role = Literal["initiator", "responder"]

SESSION_SIZE = 16  # bytes
SIZE_MAX = 16 * 1024  # bytes, of a sealed offer
LIFE_MAX = 300.0  # seconds that an offer may be good for: a replay after a restart reaches no further back
SESSIONS_MAX = 256  # remembered for each peer
_MAGIC = b"MGS1"
_PURPOSE = b"migrator seal 1\0"
_ROLES: tuple[Role, Role] = ("initiator", "responder")
_HEADER = struct.Struct(f">{SESSION_SIZE}sBQd")  # session, role, sequence, expires
_DIRECTION_SIZE = 8
_PUBLIC_SIZE = len(_MAGIC) + KEY_SIZE + _DIRECTION_SIZE
_NONCE = bytes(12)  # every offer has a key of its own


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
    """Make an offer; the sequence grows with each one of a session and role. Raises ValueError if it gets too large."""
    header = _HEADER.pack(session, _ROLES.index(role), sequence, expires) + wire.dump(body)
    ephemeral = X25519PrivateKey.generate()
    public = ephemeral.public_key().public_bytes_raw()
    opening = _MAGIC + public + _direction(public, identity.public, to)
    key = _key(ephemeral.exchange(X25519PublicKey.from_public_bytes(to.x25519)), identity.agree(to.x25519), opening)
    signature = identity.sign(_signed(opening, identity.public, to, header))
    data = opening + ChaCha20Poly1305(key).encrypt(_NONCE, signature + header, opening)
    if len(data) > SIZE_MAX or len(session) != SESSION_SIZE:
        raise ValueError("the offer is too large or its session malformed")
    return data


class Opener:
    """Opens what one peer seals to this host, and remembers what it has seen.

    Keep it for as long as the process lives: the memory of one that is thrown away no longer tells a replay.
    """

    def __init__(self, identity: Identity, frm: PublicIdentity) -> None:
        self._identity = identity
        self._from = frm
        self._seen: dict[tuple[bytes, Role], tuple[int, float]] = {}

    def open(self, data: bytes, session: bytes | None = None, *, role: Role | None = None) -> Sealed:
        """The offer, or OfferRejected with the reason.

        With `session` only of that session; with `role` only of a sender in that role, so that what an initiator has
        said is never taken for an answer.
        """
        opening, inner = self._decrypt(data)
        signature, header = inner[:SIGNATURE_SIZE], inner[SIGNATURE_SIZE:]
        if not self._from.verify(signature, _signed(opening, self._from, self._identity.public, header)):
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

    def _decrypt(self, data: bytes) -> tuple[bytes, bytes]:
        if len(data) > SIZE_MAX:
            raise OfferRejected(reason="it is too large")
        opening, box = data[:_PUBLIC_SIZE], data[_PUBLIC_SIZE:]
        if len(box) < SIGNATURE_SIZE + _HEADER.size + 16 or not opening.startswith(_MAGIC):
            raise OfferRejected(reason="it is not an offer of this version")
        public, direction = opening[len(_MAGIC) : -_DIRECTION_SIZE], opening[-_DIRECTION_SIZE:]
        me = self._identity.public
        if direction == _direction(public, me, self._from):
            raise OfferRejected(reason="it is one of this host's own, reflected")
        if direction != _direction(public, self._from, me):
            raise OfferRejected(reason="it is not from this peer to this host")
        try:
            key = _key(self._identity.agree(public), self._identity.agree(self._from.x25519), opening)
            return opening, ChaCha20Poly1305(key).decrypt(_NONCE, box, opening)
        except (InvalidTag, Malformed):
            raise OfferRejected(reason="it was changed on the way, or made with another key") from None

    def _remember(self, found: Sealed) -> None:
        now = time.time()
        if not now < found.expires <= now + LIFE_MAX:
            left = found.expires - now
            raise OfferRejected(reason=f"it has expired, or the hosts' clocks differ ({left:+.0f} s left)")
        self._seen = {key: (last, until) for key, (last, until) in self._seen.items() if until > now}
        key = (found.session, found.role)
        if key in self._seen and found.sequence <= self._seen[key][0]:
            raise OfferRejected(reason="it is a replay, or older than one that came already")
        if key not in self._seen and len(self._seen) >= SESSIONS_MAX:
            raise OfferRejected(reason="the peer opens too many sessions")
        # Kept for as long as any offer of this session could still be good, not only this one.
        self._seen[key] = (found.sequence, now + LIFE_MAX)


def _parse(header: bytes) -> Sealed:
    session, role, sequence, expires = _HEADER.unpack_from(header)
    if role >= len(_ROLES):
        raise Malformed("its role is unknown")
    return Sealed(session, _ROLES[role], sequence, expires, wire.load(header[_HEADER.size :], SIZE_MAX))


def _direction(ephemeral: bytes, frm: PublicIdentity, to: PublicIdentity) -> bytes:
    return hashlib.blake2b(ephemeral + frm.id + to.id, digest_size=_DIRECTION_SIZE, person=b"migrator-dir").digest()


def _signed(opening: bytes, frm: PublicIdentity, to: PublicIdentity, header: bytes) -> bytes:
    return _PURPOSE + frm.id + to.id + opening + header


def _key(ephemeral_static: bytes, static_static: bytes, opening: bytes) -> bytes:
    kdf = HKDF(hashes.SHA256(), 32, salt=None, info=_PURPOSE + opening)
    return kdf.derive(ephemeral_static + static_static)


def _article(role: Role) -> str:
    return "an initiator" if role == "initiator" else "a responder"
