# SPDX-License-Identifier: GPL-2.0-or-later
"""The current state of this host's tunnels, for `migrator tunnel status`: a file each, written by their owners."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from tunnel.identity.private_files import read_private, write_private
from tunnel.interface import leftovers
from tunnel.tunnel_errors import TunnelFileUnusable

FOLDER = Path("/run/migrator/tunnels")


def write(name: str, told: dict[str, Any]) -> None:
    """Write about the tunnel with this interface; a full disk does not matter here."""
    with contextlib.suppress(TunnelFileUnusable, OSError):
        write_private(FOLDER / f"{name}.json", json.dumps(told) + "\n", replace=True)


def remove(name: str) -> None:
    """That tunnel is gone; safe to repeat."""
    with contextlib.suppress(OSError):
        (FOLDER / f"{name}.json").unlink(missing_ok=True)
        FOLDER.rmdir()  # unless others are in it


def all_() -> list[dict[str, Any]]:
    """What the files say about the tunnels whose owners are alive."""
    found = []
    for record in leftovers.records():
        if not record.is_owned():
            continue
        with contextlib.suppress(TunnelFileUnusable, ValueError):
            told = json.loads(read_private(FOLDER / f"{record.name}.json") or "")
            if isinstance(told, dict):
                found.append(told)
    return found


def sweep() -> None:
    """Remove the files of processes that were killed."""
    owned = {f"{record.name}.json" for record in leftovers.records() if record.is_owned()}
    with contextlib.suppress(OSError):
        for path in FOLDER.iterdir():
            if path.name not in owned:
                path.unlink(missing_ok=True)
        FOLDER.rmdir()
