# SPDX-License-Identifier: GPL-2.0-or-later
"""How long the outside client waited around a move: from the list that redis_client.py makes with --gaps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

WORTH_A_NOTE = "0.05"  # seconds; for --gaps


def longest(gaps: Sequence[dict[str, Any]], frozen_at: float, thawed_at: float) -> float:
    """The longest wait, in ms, that ended after the freeze and began before the thaw (seconds since 1970); else 0."""
    return max((float(gap["ms"]) for gap in gaps
                if gap["until"] > frozen_at and gap["until"] - gap["ms"] / 1000 < thawed_at), default=0.0)
