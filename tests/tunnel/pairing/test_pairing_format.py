# SPDX-License-Identifier: GPL-2.0-or-later
"""Pairing with a partner that is built here from the description alone: every byte that keys hang on is as described.

Two of ours would agree on anything, on one key for everything too.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from migrator.base import strict_json
from tunnel.identity.own_identity import Identity
from tunnel.pairing.codes import Code
from tunnel.pairing.state_machine import LIFE, Pairing, Side
from tunnel.tunnel_errors import PairingFailed

CODE = Code.parse("7-crossover-clockwork")
ALICE, BOB = Identity.generate(), Identity.generate()
PURPOSE = b"migrator pairing 1\0"
URLS = ("wss://r.example",)


class Described:
    """One side: SPAKE2 between `inviter`, 0, nameplate and `joiner`, 0, nameplate; the transcript is the SHA-256 over
    the purpose, both messages (the inviter's first) and the nameplate; each key is HKDF-Expand over the purpose, its
    label, 0 and the transcript.
    """

    def __init__(self, side: Side, identity: Identity) -> None:
        from spake2 import SPAKE2_A, SPAKE2_B

        self.side, self.identity = side, identity
        plate = CODE.nameplate.encode()
        ends = {"idA": b"inviter\0" + plate, "idB": b"joiner\0" + plate}
        self.spake: Any = (SPAKE2_A if side is Side.INVITER else SPAKE2_B)(CODE.words.encode(), **ends)
        self.pake: bytes = self.spake.start()

    def agree(self, other: bytes) -> None:
        first, second = (self.pake, other) if self.side is Side.INVITER else (other, self.pake)
        self.transcript = hashlib.sha256(PURPOSE + first + second + CODE.nameplate.encode()).digest()
        self.key = self.spake.finish(other)

    def derive(self, label: str) -> bytes:
        info = PURPOSE + label.encode() + b"\0" + self.transcript
        return HKDFExpand(hashes.SHA256(), 32, info=info).derive(self.key)

    def sealed_identity(self) -> str:
        signed = PURPOSE + self.side.value.encode() + b"\0" + self.transcript
        body = {"identity": self.identity.public.to_text(), "signature": strict_json.encode(self.identity.sign(signed)),
                "rendezvous": list(URLS)}
        box = ChaCha20Poly1305(self.derive(f"identity {self.side.value}"))
        return strict_json.encode(box.encrypt(bytes(12), json.dumps(body).encode(), None))

    def opened(self, text: str) -> dict[str, Any]:
        box = ChaCha20Poly1305(self.derive(f"identity {self.side.other.value}"))
        body: dict[str, Any] = json.loads(box.decrypt(bytes(12), strict_json.data({"x": text}, "x", 4096), None))
        return body


def note(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def data(message: dict[str, Any], key: str) -> bytes:
    return strict_json.data(message, key, 4096)


def test_our_inviter_pairs_with_a_joiner_as_described() -> None:
    ours, theirs = Pairing(Side.INVITER, CODE, ALICE, URLS, 0.0), Described(Side.JOINER, BOB)
    assert ours.start() == []
    (sent,) = ours.receive(note(version=1, pake=strict_json.encode(theirs.pake)), 0.0)
    message = json.loads(sent)
    theirs.agree(data(message, "pake"))
    assert data(message, "confirm") == theirs.derive("confirm inviter")
    (sent,) = ours.receive(note(confirm=strict_json.encode(theirs.derive("confirm joiner")),
                                identity=theirs.sealed_identity()), 0.0)
    body = theirs.opened(json.loads(sent)["identity"])
    assert body["identity"] == ALICE.public.to_text() and body["rendezvous"] == list(URLS)
    signed = PURPOSE + b"inviter\0" + theirs.transcript
    assert ALICE.public.verify(data(body, "signature"), signed)
    assert ours.state.name == "CLOSING"
    assert ours.receive(note(done=strict_json.encode(theirs.derive("done"))), 0.0) == []
    assert ours.paired and ours.partner and ours.partner.public == BOB.public and ours.partner.rendezvous == URLS


def test_our_joiner_pairs_with_an_inviter_as_described() -> None:
    ours, theirs = Pairing(Side.JOINER, CODE, BOB, URLS, 0.0), Described(Side.INVITER, ALICE)
    (sent,) = ours.start()
    message = json.loads(sent)
    assert message.keys() == {"version", "pake"} and message["version"] == 1
    theirs.agree(data(message, "pake"))
    (sent,) = ours.receive(note(pake=strict_json.encode(theirs.pake),
                                confirm=strict_json.encode(theirs.derive("confirm inviter"))), 0.0)
    message = json.loads(sent)
    assert data(message, "confirm") == theirs.derive("confirm joiner")
    assert theirs.opened(message["identity"])["identity"] == BOB.public.to_text()
    (sent,) = ours.receive(note(identity=theirs.sealed_identity()), 0.0)
    assert data(json.loads(sent), "done") == theirs.derive("done")
    assert ours.paired and ours.partner and ours.partner.public == ALICE.public


def test_the_last_moment_of_a_code_is_good() -> None:
    theirs = Described(Side.JOINER, BOB)
    hello = note(version=1, pake=strict_json.encode(theirs.pake))
    assert Pairing(Side.INVITER, CODE, ALICE, URLS, 5.0).receive(hello, 5.0 + LIFE)
    with pytest.raises(PairingFailed, match="ten minutes"):
        Pairing(Side.INVITER, CODE, ALICE, URLS, 5.0).receive(hello, 5.5 + LIFE)


def test_who_is_burned_keeps_no_key() -> None:
    ours, theirs = Pairing(Side.INVITER, CODE, ALICE, URLS, 0.0), Described(Side.JOINER, BOB)
    ours.receive(note(version=1, pake=strict_json.encode(theirs.pake)), 0.0)
    assert len(ours._key) == 32
    ours.burn("?")
    assert ours._key == b"" and ours.partner is None
