# SPDX-License-Identifier: GPL-2.0-or-later
"""What a command returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from migrator.base.run import shown


@dataclasses.dataclass(frozen=True)
class Result:
    """What a command returns: `data` for --json, `text` for people, and the exit status."""

    data: dict[str, Any]
    text: str = ""
    status: int = 0
    paint: Callable[[str], str] = str  # adds colours to `text` for a terminal


def of_dry_run(commands: Sequence[tuple[str, Sequence[str]]]) -> Result:
    """What `--dry-run` prints: each command in a form that can be pasted, after the name of the host that would run it.
    """
    return Result(
        {"dry_run": [{"host": host, "argv": list(argv)} for host, argv in commands]},
        "\n".join(f"{host}# {shown(argv)}" for host, argv in commands),
    )
