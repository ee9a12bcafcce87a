# SPDX-License-Identifier: GPL-2.0-or-later
"""Requests of an honest source, about web, which it moves as 0badc0de."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from migrator.transfer.messages import Abandon, Begin

ID = "0badc0de"


def begins(lxcpath: Path = Path("/pool"), **changes: Any) -> Begin:
    fields: dict[str, Any] = {
        "id": ID, "name": "web", "lxcpath": str(lxcpath), "lxcpath_given": False, "source_host": "hosta",
        "source_lxcpath": "/pool", "destination": "root@hostb", "config": "lxc.uts.name = web\n", "includes": {},
        "bridges": {}, "disk_bytes": 1000, "mapped_root": 0}
    return Begin(**fields | changes)


def abandons(**changes: Any) -> Abandon:
    fields: dict[str, Any] = {"id": ID, "name": "web", "source_host": "hosta"}
    return Abandon(**fields | changes)
