# SPDX-License-Identifier: GPL-2.0-or-later
"""The floor under every figure of the demo: what CRIU alone needs for an equal container, then and there.

Nothing that moves a container's memory with CRIU, all of it while the container is frozen, can be quicker than CRIU's
own dump and restore. These are run by hand (bench/by_hand.py), on one host, with images on tmpfs and without a network,
for a second container that is made exactly like the one that moves: that one, and its client's connection, are left
alone.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from typing import TypedDict

from bench.hosts import NAME, POOL, TREE, on, rig

TWIN = f"{NAME}-twin"
ADDRESS = "10.0.3.101"
ROUNDS = 3
IMAGES = "/dev/shm/by-hand"  # noqa: S108 -- in a host of the rig, where nobody else is
PYTHON = "/opt/migrator/venv/bin/python"


class Rounds(TypedDict):
    """One entry for each round, in ms: CRIU's dump, and the restore by LXC and CRIU."""

    dump_ms: list[float]
    restore_ms: list[float]


def make_twin(host: str) -> None:
    """A container equal to the one that moves, and the program that dumps and restores it."""
    rig("guest", host, TWIN, "redis", "--ip", ADDRESS)
    rig("copy", str(TREE / "bench" / "by_hand.py"), f"{host}:/opt/rig/by_hand.py")


def measure(host: str, *, show: bool = False) -> Rounds:
    """Dump and restore the twin ROUNDS times; `show` the commands, too."""
    options = ["--show"] if show else []
    text = on(host, PYTHON, "/opt/rig/by_hand.py", TWIN, POOL, IMAGES, str(ROUNDS), *options, show=False)
    *told, last = text.splitlines()
    print("\n".join(told), flush=True)
    found: Rounds = json.loads(last)
    return found


def together(measured: Sequence[Rounds]) -> Rounds:
    return {"dump_ms": [ms for rounds in measured for ms in rounds["dump_ms"]],
            "restore_ms": [ms for rounds in measured for ms in rounds["restore_ms"]]}


def floor_ms(rounds: Rounds) -> float | None:
    """The median round: its dump and its restore; None if nothing was measured."""
    sums = [dump + restore for dump, restore in zip(rounds["dump_ms"], rounds["restore_ms"], strict=True)]
    return round(statistics.median(sums), 1) if sums else None


def ratio(frozen: float, floor: float | None) -> float | None:
    """How many times the floor the container was frozen; None without a floor."""
    return round(frozen / floor, 2) if floor else None
