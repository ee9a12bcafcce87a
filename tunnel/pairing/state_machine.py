# SPDX-License-Identifier: GPL-2.0-or-later
"""Pairing as a state machine: two hosts that share a code learn each other's identity. No input or output here.

    joiner  -> inviter   pake
    inviter -> joiner    pake, confirm
    joiner  -> inviter   confirm, identity (sealed)
    inviter -> joiner    identity (sealed)
    joiner  -> inviter   done

SPAKE2 turns the code into a key that nobody else can have: somebody in between who guesses at the code learns from the
first `confirm` whether the guess was right, and can guess once. A wrong guess burns the code on both sides. Under keys
derived from that key each side seals its identity, signed over the whole exchange, so that nobody can present keys that
it does not own. The joiner pins before it says `done`, and the inviter when it hears that.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import hmac
from collections.abc import Callable
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from migrator.base import strict_json
from migrator.base.strict_json import Malformed
from tunnel.identity import tunnel_config
from tunnel.identity.own_identity import SIGNATURE_SIZE, TEXT_SIZE, Identity, PublicIdentity
from tunnel.identity.tunnel_config import SERVERS_MAX, URL_MAX, InvalidServer
from tunnel.pairing.codes import Code
from tunnel.tunnel_errors import PairingFailed

NOTE_MAX = 4096  # bytes of one message; the rendezvous passes on no larger ones
LIFE = 600.0  # seconds from when a code is made until it is no longer valid
PAKE_SIZE = 33  # bytes: a side and a point
MAC_SIZE = 32  # bytes
_PURPOSE = b"migrator pairing 1\0"
_NONCE = bytes(12)  # every key seals only once
_BURNED = strict_json.dump({"burned": True})


class Side(enum.Enum):
    INVITER = "inviter"
    JOINER = "joiner"

    @property
    def other(self) -> Side:
        return Side.JOINER if self is Side.INVITER else Side.INVITER


class State(enum.Enum):
    WAITING = enum.auto()  # for the other's half of SPAKE2
    CONFIRMING = enum.auto()  # the inviter: for the joiner's proof that it knows the code
    EXCHANGING = enum.auto()  # the joiner: for the inviter's identity
    CLOSING = enum.auto()  # the inviter: for the message that the joiner has pinned
    PAIRED = enum.auto()
    BURNED = enum.auto()


@dataclasses.dataclass(frozen=True)
class Partner:
    """The result of pairing: an identity, and the rendezvous servers (URLs) where it can be rung."""

    public: PublicIdentity
    rendezvous: tuple[str, ...]


class Pairing:
    """One side of one exchange. A failure burns it: every later call raises PairingFailed."""

    def __init__(self, side: Side, code: Code, identity: Identity, rendezvous: tuple[str, ...], now: float) -> None:
        from spake2 import SPAKE2_A, SPAKE2_B

        self.state = State.WAITING
        self.partner: Partner | None = None
        self._side = side
        self._identity = identity
        self._rendezvous = rendezvous
        self._until = now + LIFE
        self._nameplate = code.nameplate.encode()
        made = SPAKE2_A if side is Side.INVITER else SPAKE2_B
        self._spake = made(code.words.encode(), idA=b"inviter\0" + self._nameplate, idB=b"joiner\0" + self._nameplate)
        self._pake: bytes = self._spake.start()
        self._transcript = b""
        self._key = b""

    def start(self) -> list[bytes]:
        """What to send before anything was received."""
        return ([strict_json.dump({"version": 1, "pake": strict_json.encode(self._pake)})]
                if self._side is Side.JOINER else [])

    def receive(self, note: bytes, now: float) -> list[bytes]:
        """Take the other side's next message; returns what to send. Raises PairingFailed.

        If it has `paired` afterwards, pin `partner` before sending anything.
        """
        if now > self._until:
            raise self.burn("the code's ten minutes are over")
        step = TRANSITIONS.get((self._side, self.state))
        if step is None:
            raise self.burn("the other side continued after the end")
        try:
            message = strict_json.load(note, NOTE_MAX)
            if message.get("burned") is True:
                raise self.burn("the other side gave up: the code was wrong there, or its user refused")
            sent, self.state = step(self, message)
        except Malformed as error:
            raise self.burn(f"the other side sent something invalid: {error}") from None
        return sent

    @property
    def paired(self) -> bool:
        """Whether it has succeeded."""
        return self.state is State.PAIRED

    def burn(self, reason: str) -> PairingFailed:
        """End it without a result; returns the error to raise."""
        self.state = State.BURNED
        self.partner = None
        self._key = b""
        return PairingFailed(reason=reason)

    @property
    def farewell(self) -> bytes:
        """What to tell the other side after a failure; it learns nothing else from it."""
        return _BURNED

    # --- The steps; TRANSITIONS says when each is taken ---

    def _answer_pake(self, message: dict[str, Any]) -> tuple[list[bytes], State]:
        self._agree(message)
        pake, confirm = strict_json.encode(self._pake), strict_json.encode(self._confirmation(self._side))
        return [strict_json.dump({"pake": pake, "confirm": confirm})], State.CONFIRMING

    def _prove(self, message: dict[str, Any]) -> tuple[list[bytes], State]:
        self._agree(message)
        self._check_confirmation(message)
        confirm = strict_json.encode(self._confirmation(self._side))
        return [strict_json.dump({"confirm": confirm, "identity": self._sealed_identity()})], State.EXCHANGING

    def _show_identity(self, message: dict[str, Any]) -> tuple[list[bytes], State]:
        self._check_confirmation(message)
        self.partner = self._opened_identity(message)
        return [strict_json.dump({"identity": self._sealed_identity()})], State.CLOSING

    def _take_identity(self, message: dict[str, Any]) -> tuple[list[bytes], State]:
        self.partner = self._opened_identity(message)
        return [strict_json.dump({"done": strict_json.encode(self._derive(b"done"))})], State.PAIRED

    def _close(self, message: dict[str, Any]) -> tuple[list[bytes], State]:
        if not hmac.compare_digest(strict_json.exactly(message, "done", MAC_SIZE), self._derive(b"done")):
            raise Malformed("its last message is not authentic")
        return [], State.PAIRED

    # --- Keys ---

    def _agree(self, message: dict[str, Any]) -> None:
        pake = strict_json.exactly(message, "pake", PAKE_SIZE)
        try:
            shared: bytes = self._spake.finish(pake)
        except Exception:  # the library reports bad points and sides by several classes, AssertionError among them
            raise Malformed("its half of SPAKE2 is malformed") from None
        first, second = (self._pake, pake) if self._side is Side.INVITER else (pake, self._pake)
        self._transcript = hashlib.sha256(_PURPOSE + first + second + self._nameplate).digest()
        # The library's key is a SHA-256 over the secret and the transcript, as good as random: expanding is enough.
        self._key = shared

    def _derive(self, label: bytes) -> bytes:
        return HKDFExpand(hashes.SHA256(), 32, info=_PURPOSE + label + b"\0" + self._transcript).derive(self._key)

    def _confirmation(self, side: Side) -> bytes:
        return self._derive(b"confirm " + side.value.encode())

    def _check_confirmation(self, message: dict[str, Any]) -> None:
        if not hmac.compare_digest(strict_json.exactly(message, "confirm", MAC_SIZE),
                                   self._confirmation(self._side.other)):
            raise self.burn("the codes differ: one was mistyped, or someone in between has guessed at it")

    def _box(self, side: Side) -> ChaCha20Poly1305:
        return ChaCha20Poly1305(self._derive(b"identity " + side.value.encode()))

    def _signed(self, side: Side) -> bytes:
        return _PURPOSE + side.value.encode() + b"\0" + self._transcript

    def _sealed_identity(self) -> str:
        body = strict_json.dump({
            "identity": self._identity.public.to_text(),
            "signature": strict_json.encode(self._identity.sign(self._signed(self._side))),
            "rendezvous": list(self._rendezvous),
        })
        return strict_json.encode(self._box(self._side).encrypt(_NONCE, body, None))

    def _opened_identity(self, message: dict[str, Any]) -> Partner:
        side = self._side.other
        try:
            opened = self._box(side).decrypt(_NONCE, strict_json.data(message, "identity", NOTE_MAX), None)
        except InvalidTag:
            raise Malformed("its identity was changed on the way") from None
        body = strict_json.load(opened, NOTE_MAX)
        public = PublicIdentity.from_text(strict_json.text(body, "identity", TEXT_SIZE))
        if not public.verify(strict_json.exactly(body, "signature", SIGNATURE_SIZE), self._signed(side)):
            raise Malformed("its identity is not its own")
        if public == self._identity.public:
            raise Malformed("it has this host's own identity: was the state folder copied?")
        return Partner(public, checked_rendezvous(body))


Step = Callable[[Pairing, dict[str, Any]], tuple[list[bytes], State]]

TRANSITIONS: dict[tuple[Side, State], Step] = {
    (Side.INVITER, State.WAITING): Pairing._answer_pake,  # -> CONFIRMING
    (Side.INVITER, State.CONFIRMING): Pairing._show_identity,  # -> CLOSING
    (Side.INVITER, State.CLOSING): Pairing._close,  # -> PAIRED
    (Side.JOINER, State.WAITING): Pairing._prove,  # -> EXCHANGING
    (Side.JOINER, State.EXCHANGING): Pairing._take_identity,  # -> PAIRED
}


def checked_rendezvous(body: dict[str, Any]) -> tuple[str, ...]:
    """The rendezvous servers that a partner names; raises Malformed."""
    urls = strict_json.items(body, "rendezvous", SERVERS_MAX)
    if not all(isinstance(url, str) and len(url) <= URL_MAX for url in urls):
        raise Malformed("a rendezvous server is not a URL")
    try:
        return tuple(server.url for server in tunnel_config.parse_servers(urls))
    except InvalidServer as error:
        raise Malformed(f"a rendezvous server is malformed: {error}") from None
