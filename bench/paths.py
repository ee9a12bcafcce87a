# SPDX-License-Identifier: GPL-2.0-or-later
"""How soon two hosts behind NAT have a direct path, how good it is, and how soon it is healed when a router gets
another address, compared with what is promised.

    python -m bench.paths [--rounds N]

Two hosts of the rig (`MIGRATOR_RIG`, default `paths`) behind port-restricted NATs (bench.nat_matrix has all types).
Prints a Markdown table; all figures go to build/paths.json. It judges nothing: the times of a busy machine say
something about the machine. Run it on one that does nothing else.

Exit status: 0 measured, 2 something failed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import sys
from pathlib import Path

from harness.nats import INITIATOR, RESPONDER, Nats
from harness.rig import Rig, wait_for

TREE = Path(__file__).resolve().parent.parent

Figures = dict[str, list[float]]
# What is measured: its unit, what it is, and what is promised for it on an idle machine.
ROWS = {
    "connect": ("ms", "from the first probe to a direct path", "500"),
    "setup": ("ms", "setting up a tunnel: rendezvous, path, WireGuard, the first echo", ""),
    "rtt": ("ms", "round trip through it", ""),
    "loss": ("%", "echoes lost", "0"),
    "rate": ("Mbit/s", "one TCP stream through it", ""),
    "noticed": ("ms", "from a router's new address until the path is declared dead", "1,200"),
    "healed": ("ms", "from then until data gets through again", "2,000"),
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, metavar="N")
    args = parser.parse_args(arguments)
    rig = Rig(os.environ.get("MIGRATOR_RIG") or "paths")
    try:
        rig.down()
        figures = measured(Nats(rig), args.rounds)
    except (AssertionError, OSError) as error:
        print(f"paths: {error}", file=sys.stderr)
        return 2
    finally:
        rig.down()
    report = TREE / "build" / "paths.json"
    report.parent.mkdir(exist_ok=True)
    report.write_text(json.dumps(figures, indent=1) + "\n")
    print(table(figures))
    return 0


def measured(nats: Nats, rounds: int) -> Figures:
    """Every figure, in the unit of its row."""
    found: Figures = {key: [] for key in ROWS}
    for side in ("a", "b"):
        nats.set(side, "port-restricted")
    with nats.agent():
        for _ in range(rounds):
            told = nats.tunnel("bench", "--seconds", "2")
            assert told.get("path") == "direct", told  # noqa: S101  # else there is nothing to measure
            for key, field, factor in (("connect", "connect_ms", 1), ("setup", "setup_ms", 1), ("rtt", "rtt_ms", 1),
                                       ("loss", "loss", 100), ("rate", "mbit_s", 1)):
                found[key].append(factor * float(told[field]))
    for number in range(rounds):
        noticed, healed = rebound(nats, "ab"[number % 2])
        found["noticed"].append(noticed)
        found["healed"].append(healed)
    return found


def rebound(nats: Nats, side: str) -> tuple[float, float]:
    """Milliseconds until a side's new address is noticed, and until the path is alive again."""
    command = ("migrator", "tunnel", "bench", RESPONDER, "--seconds", "100000", "--json", "-v")
    with nats.agent() as agent, nats.rig.start(INITIATOR, *command) as running:
        wait_for(lambda: "is connected" in agent.stderr and "tunnel to" in running.stderr, "a tunnel")
        nats.rebind(side)
        changed = float(nats.rig.sh(INITIATOR, "date +%s.%N"))
        wait_for(lambda: "alive again" in running.stderr, "it is healed")
        lines = [json.loads(line) for line in running.stderr.splitlines()]
        running.signal(signal.SIGINT)
        running.wait()
    dead, alive = (next(float(line["time"]) for line in lines if words in line["message"])
                   for words in ("is dead", "alive again"))
    return 1000 * (dead - changed), 1000 * (alive - dead)


def table(figures: Figures) -> str:
    """Rows: what was measured; columns: minimum, median, maximum, what is promised."""
    lines = [f"Linux {platform.release()}, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}", "",
             "| | | least | median | most | promised |", "| --- | --- | ---: | ---: | ---: | ---: |"]
    for key, (unit, what, promised) in ROWS.items():
        values = figures[key]
        cells = (min(values), statistics.median(values), max(values))
        lines.append(f"| {what} | {unit} | {' | '.join(f'{value:.4g}' for value in cells)} | {promised} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
