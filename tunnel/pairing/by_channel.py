# SPDX-License-Identifier: GPL-2.0-or-later
"""Pairing over a channel that is already secure, such as SSH: two questions and their answers.

    identify  nonce                                 -> identity, signature over the nonce, rendezvous
    pin       name, identity, signature, rendezvous -> nothing

The channel vouches for both ends; the signatures only prove that each side owns the keys that it names.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable
from typing import Any, Self

from migrator.base import strict_json
from migrator.base.strict_json import Malformed
from tunnel.identity.own_identity import SIGNATURE_SIZE, TEXT_SIZE, Identity, PublicIdentity
from tunnel.identity.peers import NAME_MAX, Peer, Peers
from tunnel.pairing.state_machine import Partner, checked_rendezvous
from tunnel.tunnel_errors import PairingFailed

NONCE_SIZE = 32  # bytes
_PURPOSE = b"migrator exchange 1\0"

# Asks the other host to do something: takes operation and fields, returns its answer.
Call = Callable[[str, dict[str, Any]], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Identify:
    """Asks the other host who it is and to sign the nonce."""

    nonce: bytes

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """Raises Malformed."""
        return cls(strict_json.exactly(fields, "nonce", NONCE_SIZE))

    def to_json(self) -> dict[str, Any]:
        return {"nonce": strict_json.encode(self.nonce)}


@dataclasses.dataclass(frozen=True)
class Proof:
    """An identity, its rendezvous servers, and a signature that only its owner can make."""

    partner: Partner
    signature: bytes

    @classmethod
    def of(cls, identity: Identity, rendezvous: tuple[str, ...], asked: bytes) -> Self:
        """This host's own, over what the other one `asked` to have signed."""
        return cls(Partner(identity.public, rendezvous), identity.sign(_PURPOSE + asked))

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """Raises Malformed."""
        public = PublicIdentity.from_text(strict_json.text(fields, "identity", TEXT_SIZE))
        signature = strict_json.exactly(fields, "signature", SIGNATURE_SIZE)
        return cls(Partner(public, checked_rendezvous(fields)), signature)

    def to_json(self) -> dict[str, Any]:
        return {"identity": self.partner.public.to_text(), "rendezvous": list(self.partner.rendezvous),
                "signature": strict_json.encode(self.signature)}

    def proved(self, asked: bytes) -> Partner:
        """Whose identity it is; raises Malformed unless it signed what it was asked to."""
        if not self.partner.public.verify(self.signature, _PURPOSE + asked):
            raise Malformed("its identity is not its own")
        return self.partner


@dataclasses.dataclass(frozen=True)
class Pin:
    """Asks the other host to keep this identity under that name."""

    name: str
    proof: Proof

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """Raises Malformed."""
        return cls(strict_json.text(fields, "name", NAME_MAX), Proof.from_json(fields))

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name} | self.proof.to_json()


def pair(call: Call, identity: Identity, peers: Peers, *, name: str, own_name: str,
         rendezvous: tuple[str, ...]) -> Peer:
    """Pair with the host that `call` reaches: it becomes `name` here, and this host `own_name` there.

    Raises PairingFailed, and whatever `Peers.pin` raises. Nothing is pinned there before this host has made sure that
    it can pin too.
    """
    asked = Identify(secrets.token_bytes(NONCE_SIZE))
    try:
        partner = Proof.from_json(call("identify", asked.to_json())).proved(asked.nonce)
    except Malformed as error:
        raise PairingFailed(reason=f"the other host sent an invalid answer: {error}") from None
    if partner.public == identity.public:
        raise PairingFailed(reason="that is this host itself, or has a copy of its identity")
    peers.check(name, partner.public)
    call("pin", Pin(own_name, Proof.of(identity, rendezvous, partner.public.id)).to_json())
    return peers.pin(name, partner.public, partner.rendezvous or rendezvous)


def identify(identity: Identity, rendezvous: tuple[str, ...], fields: dict[str, Any]) -> dict[str, Any]:
    """The other host's first answer; raises Malformed."""
    return Proof.of(identity, rendezvous, Identify.from_json(fields).nonce).to_json()


def pin(identity: Identity, peers: Peers, fields: dict[str, Any]) -> dict[str, Any]:
    """The other host's second answer; raises Malformed, and whatever `Peers.pin` raises."""
    asked = Pin.from_json(fields)
    partner = asked.proof.proved(identity.public.id)
    peers.pin(asked.name, partner.public, partner.rendezvous)
    return {}
