# SPDX-License-Identifier: GPL-2.0-or-later
"""How fast the parts are that users wait for, compared with what is promised. `make bench`.

    python -m bench.speeds [--moves N]

Two hosts of the rig (`MIGRATOR_RIG`, default `bench`). Prints a Markdown table; all figures go to build/speeds.json.
It judges nothing: the times of a busy machine say something about the machine. Run it on one that does nothing else.

Exit status: 0 measured, 2 something failed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from harness.rig import Rig, wait_for

TREE = Path(__file__).resolve().parent.parent
PYTHON = "/opt/migrator/venv/bin/python"
NAME, ADDRESS = "shop", "10.0.3.100"

START = """
import subprocess, time
for _ in range(30):
    begun = time.perf_counter()
    subprocess.run(["migrator", "restore-dump", "--help"], stdout=subprocess.DEVNULL, check=True)
    print(1000 * (time.perf_counter() - begun))
"""

FACTS = f"""
import pathlib, time
from migrator.host import lxc
from migrator.preflight.facts import container_facts
container = lxc.Container("{NAME}", pathlib.Path("/pool"))
for _ in range(30):
    begun = time.perf_counter()
    container_facts.gather(container, full=False)
    print(1000 * (time.perf_counter() - begun))
"""

Figures = dict[str, list[float]]
# What is measured, in ms: what it is, and what is promised for its best value on an idle machine.
ROWS = {
    "start": ("`migrator restore-dump --help`: two commands start between freeze and thaw", 150),
    "facts": ("the checks that are repeated right before the freeze", 150),
    "exec": ("`rig exec`: tests call it hundreds of times", 150),
    "frozen": ("`migrator migrate` of a Redis guest: frozen", None),
    "gap": ("the longest wait of a client that queries it without pause", 1000),
    "frozen by hand": ("the same, stage by stage: frozen", None),
    "gap by hand": ("the longest wait of that client", 2500),
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moves", type=int, default=5, metavar="N", help="there and back of each kind")
    args = parser.parse_args(arguments)
    rig = Rig(os.environ.get("MIGRATOR_RIG") or "bench")
    try:
        rig.down()
        rig.up()
        figures = measured(rig, args.moves)
    except (AssertionError, OSError) as error:
        print(f"speeds: {error}", file=sys.stderr)
        return 2
    finally:
        rig.down()
    report = TREE / "build" / "speeds.json"
    report.parent.mkdir(exist_ok=True)
    report.write_text(json.dumps(figures, indent=1) + "\n")
    print(table(figures))
    return 0


def measured(rig: Rig, moves: int) -> Figures:
    """Every figure, in ms."""
    rig.guest("hosta", NAME, "redis", ip=ADDRESS)
    found = {"start": floats(rig.exec("hosta", "python3", "-c", START).stdout),
             "facts": floats(rig.exec("hosta", PYTHON, "-", input=FACTS).stdout), "exec": exec_times(rig)}
    for suffix, move in (("", at_once), (" by hand", by_hand)):
        frozen, gaps = [], []
        for _ in range(moves):
            for source, destination in (("hosta", "hostb"), ("hostb", "hosta")):
                gap, still = moved(rig, move, source, destination)
                gaps.append(gap)
                frozen.append(still)
        found |= {f"frozen{suffix}": frozen, f"gap{suffix}": gaps}
    return found


def floats(text: str) -> list[float]:
    return [float(word) for word in text.split()]


def exec_times(rig: Rig) -> list[float]:
    found = []
    for _ in range(30):
        begun = time.perf_counter()
        rig.exec("hosta", "true")
        found.append(1000 * (time.perf_counter() - begun))
    return found


def moved(rig: Rig, move: Callable[[Rig, str, str], None], source: str, destination: str) -> tuple[float, float]:
    """One move: the client's longest wait, and how long the container was frozen."""
    with rig.start("client", "python3", "/opt/rig/guests/redis_client.py", ADDRESS) as client:
        wait_for(lambda: "connected" in client.stderr, "the client is connected")
        move(rig, source, destination)
        before = rig.probe(destination, NAME, quick=True)["count"]
        wait_for(lambda: rig.probe(destination, NAME, quick=True)["count"] > before, "the client is answered")
        client.signal(15)
        seen = client.wait().expect(0).json
    still = rig.status(destination, NAME)["restored_at"] - rig.status(source, NAME)["frozen_at"]
    return float(seen["longest_gap_ms"]), 1000 * float(still)


def at_once(rig: Rig, source: str, destination: str) -> None:
    rig.migrator(source, "migrate", NAME, "-d", f"root@{destination}").expect(0)


def by_hand(rig: Rig, source: str, destination: str) -> None:
    to = ("-d", f"root@{destination}")
    for host, stage, *options in ((source, "prepare-data", *to), (destination, "import-data"),
                                  (source, "create-dump", *to), (destination, "restore-dump"), (source, "finish")):
        rig.migrator(host, stage, NAME, *options).expect(0)


def table(figures: Figures) -> str:
    """Rows: what was measured; columns: best, median, worst, what is promised."""
    lines = [f"Linux {platform.release()}, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}", "",
             "| ms | best | median | worst | promised |", "| --- | ---: | ---: | ---: | ---: |"]
    for key, (what, promised) in ROWS.items():
        values = figures[key]
        cells = (min(values), statistics.median(values), max(values))
        lines.append(f"| {what} | {' | '.join(f'{value:.0f}' for value in cells)} | {promised or ''} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
