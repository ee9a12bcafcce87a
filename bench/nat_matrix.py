# SPDX-License-Identifier: GPL-2.0-or-later
"""Every pair of NAT types: is the path direct or by relay, how long does it take, how much does it carry?

    python -m bench.nat_matrix [--repetitions N] [--only TYPE]... [--output FILE]

Two hosts of the rig (`MIGRATOR_RIG`, default `natmatrix`), a router between them, a rendezvous with a relay; `migrator
agent` waits on one host, `migrator tunnel ping` and `bench` run on the other. Prints Markdown tables and puts them into
FILE (default docs/nat_matrix.md) between its two marks; all figures go to build/nat_matrix.json.

It judges nothing, but reports which pairs did not end as they should, or not as soon.

Exit status: 0 measured, 2 something failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import itertools
import json
import os
import platform
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.page import put
from harness.nats import Nats
from harness.rig import Rig

TREE = Path(__file__).resolve().parent.parent
TYPES = ("none", "full-cone", "address-restricted", "port-restricted", "port-restricted,no-input-drop", "symmetric",
         "symmetric,no-input-drop", "double", "blocked")  # fmt: skip
SEARCHES = 10  # repetitions if a port has to be guessed
CONE_LIMIT = 500.0  # ms
SEARCH_LIMIT = 3000.0  # ms, in nine of ten
SHORT = {"none": "none", "full-cone": "full cone", "address-restricted": "address-restr.",
         "port-restricted": "port-restr.", "port-restricted,no-input-drop": "port-restr., no drop",
         "symmetric": "symmetric", "symmetric,no-input-drop": "symmetric, no drop", "double": "double",
         "blocked": "blocked"}  # fmt: skip


@dataclasses.dataclass
class Cell:
    """The result for one pair; `runs` as reported by `migrator tunnel --json`."""

    initiator: str
    responder: str
    runs: list[dict[str, Any]]

    @property
    def paths(self) -> set[str]:
        return {str(run.get("path", "failed")) for run in self.runs}

    @property
    def connect_ms(self) -> float:
        found = [float(run["connect_ms"]) for run in self.runs if "connect_ms" in run]
        return statistics.median(found) if found else float("nan")

    @property
    def mbit_s(self) -> float | None:
        found = [run["mbit_s"] for run in self.runs if run.get("mbit_s")]
        return statistics.median(found) if found else None

    @property
    def searched(self) -> bool:
        """Whether a symmetric NAT's port had to be guessed."""
        return searches(self.initiator, self.responder)

    def remark(self) -> str:
        """What is not as it should be; empty if nothing is wrong."""
        wanted = expected(self.initiator, self.responder)
        good = [run for run in self.runs if run.get("path") == wanted]
        if self.searched:
            in_time = [run for run in good if run["connect_ms"] < SEARCH_LIMIT]
            enough = len(in_time) >= 0.9 * len(self.runs)
            return "" if enough else f"direct in under 3 s in {len(in_time)} of {len(self.runs)}"
        if len(good) < len(self.runs):
            return f"{wanted} in {len(good)} of {len(self.runs)}"
        if wanted == "direct" and max(run["connect_ms"] for run in good) > CONE_LIMIT:
            return f"took up to {max(run['connect_ms'] for run in good):.0f} ms"
        return ""


def family(kind: str) -> str:
    return kind.partition(",")[0].replace("double", "port-restricted")


def searches(a: str, b: str) -> bool:
    return {family(a), family(b)} == {"symmetric", "port-restricted"}


def expected(a: str, b: str) -> str:
    kinds = [family(a), family(b)]
    return "relay" if "blocked" in kinds or kinds == ["symmetric", "symmetric"] else "direct"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3, metavar="N")
    parser.add_argument("--only", action="append", choices=TYPES, metavar="TYPE", help="can be repeated")
    parser.add_argument("--output", type=Path, default=TREE / "docs" / "nat_matrix.md", metavar="FILE")
    args = parser.parse_args(arguments)
    types = [kind for kind in TYPES if not args.only or kind in args.only]
    rig = Rig(os.environ.get("MIGRATOR_RIG") or "natmatrix")
    cells: list[Cell] = []
    try:
        for cell in measure(rig, types, args.repetitions):
            cells.append(cell)
            print(f"{cell.initiator} -> {cell.responder}: {'/'.join(sorted(cell.paths))}, {cell.connect_ms:.0f} ms, "
                  f"{cell.mbit_s or 0:.0f} Mbit/s", *([f"-- {cell.remark()}"] if cell.remark() else []),
                  *{run["error"]["message"] for run in cell.runs if "error" in run}, file=sys.stderr, flush=True)
    except (AssertionError, OSError) as error:
        print(f"nat_matrix: {error}", file=sys.stderr)
        return 2
    finally:
        rig.down()
        report = TREE / "build" / "nat_matrix.json"
        report.parent.mkdir(exist_ok=True)
        report.write_text(json.dumps([dataclasses.asdict(cell) for cell in cells], indent=1) + "\n")
    text = tables(cells, types)
    print(text)
    put(text, args.output)
    return 0


def measure(rig: Rig, types: list[str], repetitions: int) -> Iterator[Cell]:
    """All pairs; those without a NAT on a side need a rig of their own, all others share one."""
    for a_none, b_none in itertools.product((False, True), repeat=2):
        firsts = [kind for kind in types if (kind == "none") == a_none]
        seconds = [kind for kind in types if (kind == "none") == b_none]
        if not firsts or not seconds:
            continue
        nats = Nats(rig, a=not a_none, b=not b_none)
        for second in seconds:
            nats.set("b", second)
            with nats.agent():
                for first in firsts:
                    nats.set("a", first)
                    count = SEARCHES if searches(first, second) else repetitions
                    runs = [nats.tunnel("bench", "--seconds", "1")]
                    runs += [nats.tunnel("ping") for _ in range(count - 1)]
                    yield Cell(first, second, runs)


def tables(cells: list[Cell], types: list[str]) -> str:
    """Both tables, and what was not as it should be."""
    found = {(cell.initiator, cell.responder): cell for cell in cells}
    when = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    lines = [f"Measured {when}, Linux {platform.release()}, {os.cpu_count()} cores, {len(cells)} pairs, "
             f"{sum(len(cell.runs) for cell in cells)} connections.", "",
             "Path and median time to connect. Rows: the initiator's NAT, columns: the responder's.", ""]
    lines += table(types, lambda a, b: outcome(found.get((a, b))))
    lines += ["", "Throughput of one TCP stream through the tunnel, Mbit/s.", ""]
    lines += table(types, lambda a, b: rate(found.get((a, b))))
    runs = [run for cell in cells if cell.searched for run in cell.runs]
    searched = [run["connect_ms"] for run in runs if run.get("path") == "direct"]
    if searched:
        soon = sum(each < SEARCH_LIMIT for each in searched)
        lines += ["", f"Symmetric against port-restricted: direct in under 3 s in {soon} of {len(runs)}, median "
                  f"{statistics.median(searched):.0f} ms, longest {max(searched):.0f} ms."]
    wrong = [cell for cell in cells if cell.remark()]
    lines += ["", "Every pair ended as expected." if not wrong else "Not as expected:"]
    lines += [f"- {SHORT[cell.initiator]}, {SHORT[cell.responder]}: {cell.remark()}" for cell in wrong]
    return "\n".join(lines)


def table(types: list[str], content: Any) -> list[str]:
    rows = [["", *(SHORT[kind] for kind in types)], ["---"] * (len(types) + 1)]
    rows += [[f"**{SHORT[a]}**", *(content(a, b) for b in types)] for a in types]
    return [f"| {' | '.join(row)} |" for row in rows]


def outcome(cell: Cell | None) -> str:
    if cell is None:
        return ""
    counts = {path: sum(run.get("path", "failed") == path for run in cell.runs) for path in sorted(cell.paths)}
    many = len(counts) > 1
    paths = ", ".join(f"{path} {count}/{len(cell.runs)}" if many else path for path, count in counts.items())
    return f"{paths}, {cell.connect_ms:.0f} ms"


def rate(cell: Cell | None) -> str:
    return f"{cell.mbit_s:.0f}" if cell and cell.mbit_s else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
