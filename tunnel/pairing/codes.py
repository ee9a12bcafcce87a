# SPDX-License-Identifier: GPL-2.0-or-later
"""One-time codes such as `7-velvet-harbor`: a nameplate, which is public, and words, which are the secret.

Two words carry 18 bits. That is little for a password and enough for a secret that can be tried once: a guess succeeds
with a probability of 1 in 262,144, and both sides are told that somebody has guessed.
"""

from __future__ import annotations

import dataclasses
import re
import secrets

from tunnel.pairing.words import WORDS
from tunnel.tunnel_errors import PairingFailed

WORDS_PER_CODE = 2
CODE_MAX = 64  # characters
_CODE = re.compile(r"([0-9]{1,6})-([a-z]+(?:-[a-z]+)*)")


@dataclasses.dataclass(frozen=True)
class Code:
    """Where to meet, and the secret that both sides know; `repr` leaves the secret out."""

    nameplate: str
    words: str = dataclasses.field(repr=False)

    @classmethod
    def make(cls, nameplate: str) -> Code:
        """A code with fresh words."""
        return cls(nameplate, "-".join(secrets.choice(WORDS) for _ in range(WORDS_PER_CODE)))

    @classmethod
    def parse(cls, text: str) -> Code:
        """Read a code as people write it, including blanks and capitals; raises PairingFailed.

        It does not check that the words are from the list: a wrong code is one guess, whatever is wrong with it.
        """
        match = _CODE.fullmatch("-".join(text.lower().replace("-", " ").split())) if len(text) <= CODE_MAX else None
        if not match:
            raise PairingFailed(reason="that is not a code; one looks like 7-velvet-harbor")
        return cls(match[1], match[2])

    def __str__(self) -> str:
        return f"{self.nameplate}-{self.words}"
