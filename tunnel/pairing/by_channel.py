# SPDX-License-Identifier: GPL-2.0-or-later
"""Pairing over a channel that is already secure, such as SSH: two questions and their answers.

    identify  nonce                                 -> identity, signature over the nonce, rendezvous
    pin       name, identity, signature, rendezvous -> nothing

The channel vouches for both ends; the signatures only prove that each side owns the keys that it names.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

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


def pair(call: Call, identity: Identity, peers: Peers, *, name: str, own_name: str,
         rendezvous: tuple[str, ...]) -> Peer:
    """Pair with the host that `call` reaches: it becomes `name` here, and this host `own_name` there.

    Raises PairingFailed, and whatever `Peers.pin` raises. Nothing is pinned there before this host has made sure that
    it can pin too.
    """
    nonce = secrets.token_bytes(NONCE_SIZE)
    try:
        partner = _proved(call("identify", {"nonce": strict_json.encode(nonce)}), nonce)
    except Malformed as error:
        raise PairingFailed(reason=f"the other host sent an invalid answer: {error}") from None
    if partner.public == identity.public:
        raise PairingFailed(reason="that is this host itself, or has a copy of its identity")
    peers.check(name, partner.public)
    call("pin", {"name": own_name} | _proof(identity, rendezvous, partner.public.id))
    return peers.pin(name, partner.public, partner.rendezvous or rendezvous)


def identify(identity: Identity, rendezvous: tuple[str, ...], fields: dict[str, Any]) -> dict[str, Any]:
    """The other host's first answer; raises Malformed."""
    return _proof(identity, rendezvous, strict_json.exactly(fields, "nonce", NONCE_SIZE))


def pin(identity: Identity, peers: Peers, fields: dict[str, Any]) -> dict[str, Any]:
    """The other host's second answer; raises Malformed, and whatever `Peers.pin` raises."""
    partner = _proved(fields, identity.public.id)
    peers.pin(strict_json.text(fields, "name", NAME_MAX), partner.public, partner.rendezvous)
    return {}


def _proof(identity: Identity, rendezvous: tuple[str, ...], asked: bytes) -> dict[str, Any]:
    return {
        "identity": identity.public.to_text(), "rendezvous": list(rendezvous),
        "signature": strict_json.encode(identity.sign(_PURPOSE + asked)),
    }


def _proved(fields: dict[str, Any], asked: bytes) -> Partner:
    public = PublicIdentity.from_text(strict_json.text(fields, "identity", TEXT_SIZE))
    if not public.verify(strict_json.exactly(fields, "signature", SIGNATURE_SIZE), _PURPOSE + asked):
        raise Malformed("its identity is not its own")
    return Partner(public, checked_rendezvous(fields))
