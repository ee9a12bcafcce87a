# SPDX-License-Identifier: GPL-2.0-or-later
"""Keys, and whether a text shows one of the secret ones."""

from __future__ import annotations

from tunnel.wireguard import wireguard_keys

PRIVATE = bytes(range(32))
PUBLIC = bytes(range(32, 64))
PRESHARED = bytes(range(64, 96))
NAME = "mig-01234567"


def shows_a_secret(text: str) -> bool:
    """Whether one of the two secret keys is in a text, in any form that it could have."""
    forms = (form for key in (PRIVATE, PRESHARED) for form in (key.hex(), wireguard_keys.to_base64(key), repr(key)))
    return any(form in text for form in forms)
