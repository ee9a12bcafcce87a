# SPDX-License-Identifier: GPL-2.0-or-later
"""A container that stands still for too long, and a destination that can be asked."""

from __future__ import annotations

from typing import Any

from migrator.errors.memory import DowntimeExceeded
from tests.migrator.wire import by_op

TOO_LATE = DowntimeExceeded(name="web", seconds="120")


class There:
    peer_host = "hostb"

    @by_op
    def call_within(self, *_: object, **__: object) -> dict[str, Any]:
        return {}
