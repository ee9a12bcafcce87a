# SPDX-License-Identifier: GPL-2.0-or-later
"""A host's identity: an Ed25519 key that signs and an X25519 key to which offers are sealed.

Both are generated at first use and are kept in one file. Peers pin both public keys together; a hash over the two
identifies the host everywhere: in full as `id` (the rendezvous routes by it), shortened as `fingerprint` for people.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
from pathlib import Path

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from migrator.base import strict_json
from migrator.base.strict_json import Malformed
from tunnel.identity import private_files
from tunnel.identity.private_files import STATE
from tunnel.tunnel_errors import TunnelFileUnusable

KEY_SIZE = 32  # bytes, of each of the four keys
SIGNATURE_SIZE = 64  # bytes
FINGERPRINT_BITS = 100
TEXT_SIZE = 4 + 88  # characters of `to_text`
ENCRYPTED_EXTRA = 32 + 16  # bytes that `encrypt` adds: the fresh public key in front, the tag at the end
_HPKE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
_PREFIX = "mi1:"
_HEADER = "migrator-identity 1"


@dataclasses.dataclass(frozen=True)
class PublicIdentity:
    """The public half: what peers pin."""

    ed25519: bytes
    x25519: bytes

    def __post_init__(self) -> None:
        if len(self.ed25519) != KEY_SIZE or len(self.x25519) != KEY_SIZE:
            raise Malformed("the keys of an identity are 32 bytes each")

    @functools.cached_property
    def id(self) -> bytes:
        """BLAKE2b over both keys, 32 bytes: identifies the host to programs."""
        return hashlib.blake2b(self.ed25519 + self.x25519, digest_size=32, person=b"migrator-id").digest()

    @property
    def fingerprint(self) -> str:
        """The first 100 bits of `id` as five groups of four base32 characters: for people to compare.

        Finding a second identity with a given fingerprint takes 2^100 tries; making two of one's own that share one
        takes 2^50, and gains nothing.
        """
        text = base64.b32encode(self.id).decode().lower()[: FINGERPRINT_BITS // 5]
        return "-".join(text[i : i + 4] for i in range(0, len(text), 4))

    def to_text(self) -> str:
        """One word of printable characters, always the same for an identity."""
        return _PREFIX + strict_json.encode(self.ed25519 + self.x25519)

    @classmethod
    def from_text(cls, text: str) -> PublicIdentity:
        """The identity from which `to_text` made the text; raises Malformed."""
        if len(text) > TEXT_SIZE or not text.startswith(_PREFIX):
            raise Malformed("it is not a public identity")
        keys = strict_json.decode(text.removeprefix(_PREFIX), "a public identity")
        return cls(keys[:KEY_SIZE], keys[KEY_SIZE:])

    def encrypt(self, data: bytes, info: bytes) -> bytes:
        """Only this identity can read it, and only with the same `info`; raises Malformed for a key of small order.

        HPKE (RFC 9180) with a key pair generated for it; its public half is in front.
        """
        try:
            return _HPKE.encrypt(data, X25519PublicKey.from_public_bytes(self.x25519), info)
        except ValueError:
            raise Malformed("it is not a usable X25519 key") from None

    def verify(self, signature: bytes, data: bytes) -> bool:
        """Whether this identity has signed exactly these bytes."""
        try:
            Ed25519PublicKey.from_public_bytes(self.ed25519).verify(signature, data)
        except (InvalidSignature, ValueError):
            return False
        return True


class Identity:
    """Both halves; `repr` and errors never show the private one."""

    def __init__(self, ed25519: bytes, x25519: bytes) -> None:
        self._ed25519 = Ed25519PrivateKey.from_private_bytes(ed25519)
        self._x25519 = X25519PrivateKey.from_private_bytes(x25519)
        self.public = PublicIdentity(
            self._ed25519.public_key().public_bytes_raw(), self._x25519.public_key().public_bytes_raw()
        )

    def __repr__(self) -> str:
        return f"Identity({self.public.fingerprint})"

    @classmethod
    def generate(cls) -> Identity:
        """A new identity that is not stored anywhere yet."""
        return cls(Ed25519PrivateKey.generate().private_bytes_raw(), X25519PrivateKey.generate().private_bytes_raw())

    @classmethod
    def load(cls, path: Path = STATE / "identity") -> Identity:
        """This host's identity, generated at first use; raises TunnelFileUnusable.

        A file that others may read is refused: whoever has read it can pose as this host to all its peers.
        """
        text = private_files.read_private(path)
        if text is None:
            # If two processes do this at once, the second uses what the first has made.
            private_files.write_private(path, cls.generate()._to_text(), replace=False)
            text = private_files.read_private(path)
        try:
            return cls._from_text(text or "")
        except Malformed as error:
            fix = f"Restore it from a backup. Without one: remove {path}, then pair with every peer again."
            raise TunnelFileUnusable(path=path, reason=str(error), fix=fix) from None

    def sign(self, data: bytes) -> bytes:
        """An Ed25519 signature. Callers begin `data` with a purpose, so that no signature passes for another kind."""
        return self._ed25519.sign(data)

    def decrypt(self, data: bytes, info: bytes) -> bytes:
        """What somebody has encrypted to this identity, with the same `info`; raises Malformed.

        It does not prove who that was: RFC 9180, section 5.1.1, mode base.
        """
        try:
            return _HPKE.decrypt(data, self._x25519, info)
        except (InvalidTag, ValueError):
            raise Malformed("it was changed on the way, or made for another key") from None

    def _to_text(self) -> str:
        ed25519, x25519 = self._ed25519.private_bytes_raw(), self._x25519.private_bytes_raw()
        return f"{_HEADER}\ned25519 {strict_json.encode(ed25519)}\nx25519 {strict_json.encode(x25519)}\n"

    @classmethod
    def _from_text(cls, text: str) -> Identity:
        lines = text.splitlines()
        if len(lines) != 3 or lines[0] != _HEADER:
            raise Malformed("it is not an identity of version 1")
        keys = []
        for line, kind in zip(lines[1:], ("ed25519", "x25519"), strict=True):
            word, _, value = line.partition(" ")
            if word != kind:
                raise Malformed(f"its {kind} key is missing")
            keys.append(strict_json.decode(value, f"its {kind} key"))
        if any(len(key) != KEY_SIZE for key in keys):
            raise Malformed("a key in it is not 32 bytes long")
        return cls(*keys)
