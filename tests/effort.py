# SPDX-License-Identifier: GPL-2.0-or-later
"""How much is tried: enough for every change by `make test`; `make test-all` sets MIGRATOR_TESTS=all and tries more."""

from __future__ import annotations

import os

ALL = os.environ.get("MIGRATOR_TESTS") == "all"


def tries(few: int, many: int) -> int:
    """How often something is to be tried that chance has a part in."""
    return many if ALL else few
