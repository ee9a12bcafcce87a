# SPDX-License-Identifier: GPL-2.0-or-later
"""X25519 keys as WireGuard uses them: 32 raw bytes here, base64 or hexadecimal only if a back end needs that."""

from __future__ import annotations

import os
from base64 import b64encode

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from tunnel.wireguard.common import KEY_SIZE


def private_key() -> bytes:
    """A fresh private key, clamped as RFC 7748 requires, so that it reads back as it was set."""
    key = bytearray(os.urandom(KEY_SIZE))
    key[0] &= 248
    key[31] = key[31] & 127 | 64
    return bytes(key)


def public_key(private: bytes) -> bytes:
    """The public key of a private one."""
    return X25519PrivateKey.from_private_bytes(check(private)).public_key().public_bytes_raw()


def check(key: bytes) -> bytes:
    """The key itself; raises ValueError, which does not show it, if it has another size."""
    if len(key) != KEY_SIZE:
        raise ValueError(f"a WireGuard key has {KEY_SIZE} bytes, not {len(key)}")
    return key


def to_base64(key: bytes) -> str:
    """The form in which netlink's encoder and wg(8) write keys."""
    return b64encode(check(key)).decode()


def to_hex(key: bytes) -> str:
    """The form in which the UAPI socket writes keys."""
    return check(key).hex()
