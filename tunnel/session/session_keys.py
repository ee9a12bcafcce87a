# SPDX-License-Identifier: GPL-2.0-or-later
"""The keys of one session: all fresh, all forgotten with it.

Each side generates a WireGuard key pair and an ephemeral X25519 pair, and sends both public keys in its sealed offer.
From the shared secret of the ephemeral keys, HKDF (RFC 5869) derives what both sides must share. Somebody who later
obtains a host's identity alone learns nothing about sessions that have ended.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from migrator.base.strict_json import Malformed
from tunnel.punching.probes import Role
from tunnel.wireguard import wireguard_keys as wireguard

KEY_SIZE = 32  # bytes
_PURPOSE = b"migrator session 1\0"


@dataclasses.dataclass(frozen=True)
class Public:
    """The keys in one side's offer, and whose offer it was (`PublicIdentity.id`)."""

    identity: bytes
    wireguard: bytes
    ephemeral: bytes


@dataclasses.dataclass(frozen=True)
class SessionKeys:
    """`private_key`, `peer_public` and `preshared` are WireGuard's; `secret` is what the listener asks for."""

    session: bytes
    role: Role
    private_key: bytes = dataclasses.field(repr=False)
    peer_public: bytes
    preshared: bytes = dataclasses.field(repr=False)
    secret: bytes = dataclasses.field(repr=False)
    _probe: bytes = dataclasses.field(repr=False)

    def probe(self, attempt: int) -> bytes:
        """The key for the probes of the session's n-th punch: those of an earlier punch are worthless in it."""
        return hmac.digest(self._probe, b"attempt\0%d" % attempt, hashlib.sha256)


class Ours:
    """This side's fresh private keys."""

    def __init__(self, session: bytes, role: Role, identity: bytes) -> None:
        self._session = session
        self._role: Role = role
        self._private_key = wireguard.private_key()
        self._ephemeral = X25519PrivateKey.generate()
        self.public = Public(
            identity, wireguard.public_key(self._private_key), self._ephemeral.public_key().public_bytes_raw()
        )

    def __repr__(self) -> str:
        return f"Ours({self._role})"

    def agree(self, theirs: Public) -> SessionKeys:
        """The session's keys; raises Malformed for invalid keys, or this side's own."""
        if self.public.wireguard == theirs.wireguard or self.public.ephemeral == theirs.ephemeral:
            raise Malformed("the peer's keys are this host's own")
        try:
            shared = self._ephemeral.exchange(X25519PublicKey.from_public_bytes(theirs.ephemeral))
        except ValueError:
            raise Malformed("the peer's ephemeral key is not usable") from None
        sides = [self.public, theirs] if self._role == "initiator" else [theirs, self.public]
        said = b"".join(side.identity + side.wireguard + side.ephemeral for side in sides)
        preshared, secret, probe = (
            HKDF(hashes.SHA256(), KEY_SIZE, salt=self._session, info=_PURPOSE + label + b"\0" + said).derive(shared)
            for label in (b"preshared", b"secret", b"probe")
        )
        return SessionKeys(self._session, self._role, self._private_key, theirs.wireguard, preshared, secret, probe)
