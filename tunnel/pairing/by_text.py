# SPDX-License-Identifier: GPL-2.0-or-later
"""Pairing without any server: an invitation and its answer, carried by people as two words of text.

    invitation  MI1.….  inviter's identity, one-time secret (16 bytes), its rendezvous servers; signed
    answer      MA1.….  joiner's identity, its rendezvous servers, a MAC under the secret; signed over both texts

The signatures prove that each side owns its identity. The MAC proves to the inviter that the answer comes from somebody
who has read this very invitation. Against somebody who can change what people paste only comparing helps: both sides
show both fingerprints, and these must be the same two.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import hmac
import secrets
import time
from typing import Any

from migrator.base import strict_json
from migrator.base.clock import Clock
from migrator.base.strict_json import Malformed
from tunnel.identity.own_identity import SIGNATURE_SIZE, TEXT_SIZE, Identity, PublicIdentity
from tunnel.pairing.state_machine import Partner, checked_rendezvous
from tunnel.tunnel_errors import PairingFailed

LIFE = 3600.0  # seconds for which an inviter waits for the answer: people copy and paste, perhaps by mail
TEXT_MAX = 4000  # characters; a terminal passes on lines of up to 4095
SECRET_SIZE = 16  # bytes
MAC_SIZE = 32  # bytes
_INVITATION = "MI1"
_ANSWER = "MA1"
_PURPOSE = b"migrator offline 1\0"


class Invitation:
    """The inviter's side; `text` goes to the other host, and `accept` takes what comes back, once."""

    def __init__(self, identity: Identity, rendezvous: tuple[str, ...], clock: Clock = time.monotonic) -> None:
        self._identity = identity
        self._secret = secrets.token_bytes(SECRET_SIZE)
        self._clock = clock
        self._until = clock() + LIFE
        self._used = False
        self.text = _blob(_INVITATION, identity, rendezvous, b"", {"secret": strict_json.encode(self._secret)})

    def accept(self, text: str) -> Partner:
        """The host that has answered; raises PairingFailed."""
        if self._used or self._clock() > self._until:
            raise PairingFailed(reason="the invitation has already been used, or an hour has passed")
        self._used = True
        try:
            body = _opened(_ANSWER, text, self.text.encode())
            mac = strict_json.exactly(body.fields, "mac", MAC_SIZE)
            if not hmac.compare_digest(mac, _mac(self._secret, self.text, body.partner.public)):
                raise _failed("the answer is to another invitation")
            return _not_self(body.partner, self._identity)
        except Malformed as error:
            raise _failed(f"the answer is damaged, or not one to this invitation: {error}") from None


def answer(text: str, identity: Identity, rendezvous: tuple[str, ...]) -> tuple[Partner, str]:
    """Read an invitation: returns who invites, and the text to carry back. Raises PairingFailed."""
    try:
        body = _opened(_INVITATION, text, b"")
        secret = strict_json.exactly(body.fields, "secret", SECRET_SIZE)
        partner = _not_self(body.partner, identity)
    except Malformed as error:
        raise _failed(f"the invitation is damaged, or not one: {error}") from None
    clean = _joined(text)
    mac = strict_json.encode(_mac(secret, clean, identity.public))
    return partner, _blob(_ANSWER, identity, rendezvous, clean.encode(), {"mac": mac})


@dataclasses.dataclass(frozen=True)
class _Body:
    partner: Partner
    fields: dict[str, Any]


def _blob(kind: str, identity: Identity, rendezvous: tuple[str, ...], before: bytes, fields: dict[str, Any]) -> str:
    body = strict_json.dump({"identity": identity.public.to_text(), "rendezvous": list(rendezvous)} | fields)
    signed = identity.sign(_signed(kind, before, body)) + body
    return f"{kind}.{base64.urlsafe_b64encode(signed).decode().rstrip('=')}."


def _opened(kind: str, text: str, before: bytes) -> _Body:
    clean = _joined(text)
    if len(clean) > TEXT_MAX:
        raise Malformed(f"it has more than {TEXT_MAX} characters")
    found, _, rest = clean.partition(".")
    encoded, end, more = rest.partition(".")
    if found != kind or not end or more:
        raise Malformed(f"it is not {kind}, a dot, letters and digits, and another dot")
    try:
        data = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise Malformed("some of it is missing or changed") from None
    signature, body = data[:SIGNATURE_SIZE], data[SIGNATURE_SIZE:]
    fields = strict_json.load(body, TEXT_MAX)
    public = PublicIdentity.from_text(strict_json.text(fields, "identity", TEXT_SIZE))
    if not public.verify(signature, _signed(kind, before, body)):
        raise Malformed("its signature is wrong")
    return _Body(Partner(public, checked_rendezvous(fields)), fields)


def complete(text: str) -> bool:
    """Whether a text that is being pasted is complete."""
    return len(text) > TEXT_MAX or text.count(".") > 1


def _joined(text: str) -> str:
    """The text without the blanks and line breaks that mail and terminals put in."""
    return "".join(text.split())


def _signed(kind: str, before: bytes, body: bytes) -> bytes:
    return _PURPOSE + kind.encode() + hashlib.sha256(before).digest() + body


def _mac(secret: bytes, invitation: str, joiner: PublicIdentity) -> bytes:
    return hmac.digest(secret, _PURPOSE + hashlib.sha256(invitation.encode()).digest() + joiner.id, "sha256")


def _not_self(partner: Partner, identity: Identity) -> Partner:
    if partner.public == identity.public:
        raise Malformed("it has this host's own identity")
    return partner


def _failed(reason: str) -> PairingFailed:
    return PairingFailed(reason=reason)
