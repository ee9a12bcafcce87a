# SPDX-License-Identifier: GPL-2.0-or-later
"""The states that each role can be in."""

from __future__ import annotations

from migrator.record.states import TABLES

OF_ROLE = {role: {*table.values(), *(old for old, _ in table if old)} for role, table in TABLES.items()}
