# SPDX-License-Identifier: GPL-2.0-or-later
"""A container moves back and forth under load, over and over: is anything lost, does anything grow?

    python -m bench.endurance [--trips N] [--guest KIND] [--output FILE]

Two hosts of the rig (`MIGRATOR_RIG`, default `endurance`). A trip is from hosta to hostb and back, each way one
`migrator migrate`. The guest is a Redis server that an outside client queries without pause, through one connection for
the whole run. After each trip everything that could pile up on a host is counted (bench/traces.py). Prints Markdown
tables and puts them into FILE (default docs/reliability.md); all figures go to build/endurance.json.

Exit status: 0 nothing was lost and nothing grew, 1 something was or did, 2 something failed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import traces, waits
from bench.growth import grown, growth_table
from bench.page import put
from harness.rig import LXC_HOSTS, Rig, Running, wait_for

TREE = Path(__file__).resolve().parent.parent
NAME, ADDRESS = "shop", "10.0.3.100"
GUESTS = ("redis", "tick", "memory")
FIRST = 10  # hops at either end of the run that are compared with each other, if there are so many
SLOWER, SLACK_MS = 1.25, 100.0  # a median that exceeds the other by this factor and this much is a trend
RUNS_AGAIN = 3  # exit status: failed after the freeze, and the container keeps running where it was
OF_THE_GUEST = ("its ", "the container's ")  # what is counted already before the first move
SETTLE_SECONDS = 60.0  # for processes that are about to end


@dataclasses.dataclass
class Hop:
    """One move, and what the client saw of it."""

    number: int
    source: str
    destination: str
    frozen_ms: float
    seconds: float
    frozen_at: float  # seconds since 1970
    load: float = 0.0  # the machine's load average afterwards
    gap_ms: float | None = None
    failures: list[str] = dataclasses.field(default_factory=list)  # of attempts before the one that succeeded


@dataclasses.dataclass
class Run:
    """Everything that was observed."""

    guest: str
    hops: list[Hop] = dataclasses.field(default_factory=list)
    counts: list[dict[str, dict[str, int]]] = dataclasses.field(default_factory=list)  # one per trip: by host
    client: dict[str, Any] = dataclasses.field(default_factory=dict)
    probe: dict[str, Any] = dataclasses.field(default_factory=dict)
    started_anew: bool = False


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trips", type=int, default=50, metavar="N")
    parser.add_argument("--guest", choices=GUESTS, default="redis")
    parser.add_argument("--output", type=Path, default=TREE / "docs" / "reliability.md", metavar="FILE")
    args = parser.parse_args(arguments)
    rig = Rig(os.environ.get("MIGRATOR_RIG") or "endurance")
    run = Run(args.guest)
    try:
        rig.down()
        rig.up()
        rig.guest("hosta", NAME, args.guest, **({"ip": ADDRESS} if args.guest == "redis" else {}))
        for hop in go(rig, run, args.trips):
            print(f"{hop.number:4} {hop.source} -> {hop.destination}: frozen {hop.frozen_ms:.0f} ms, "
                  f"{hop.seconds:.2f} s in all", *hop.failures, file=sys.stderr, flush=True)
    except (AssertionError, OSError) as error:
        print(f"endurance: {error}", file=sys.stderr)
        return 2
    finally:
        rig.down()
        report = TREE / "build" / "endurance.json"
        report.parent.mkdir(exist_ok=True)
        report.write_text(json.dumps(dataclasses.asdict(run), indent=1) + "\n")
    text = tables(run)
    print(text)
    put(text, args.output, "endurance")
    return 1 if wrong(run) else 0


# --- the run --------------------------------------------------------------------------------------------------


def go(rig: Rig, run: Run, trips: int) -> Iterator[Hop]:
    """Move the guest, which is on hosta, there and back `trips` times; yields each hop once it is done."""
    start = rig.probe("hosta", NAME)["start"]
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(counting_client(rig)) if run.guest == "redis" else None
        new = {key: value for key, value in counted(rig, [])["hosta"].items() if key.startswith(OF_THE_GUEST)}
        for _ in range(trips):
            for source, destination in (LXC_HOSTS, LXC_HOSTS[::-1]):
                hop = move(rig, source, destination, len(run.hops) + 1)
                run.hops.append(hop)
                yield hop
            run.counts.append(counted(rig, run.counts))
            run.counts[0]["hosta"] |= new
        if client:
            time.sleep(1)
            client.signal(15)
            run.client = client.wait().json
            for hop in run.hops:
                hop.gap_ms = waits.longest(run.client["gaps"], hop.frozen_at, hop.frozen_at + hop.frozen_ms / 1000)
    run.probe = rig.probe("hosta", NAME)
    run.started_anew = run.probe.get("start") != start
    if client and run.probe["count"] < run.client["requests"]:
        run.client["lost"] += run.client["requests"] - run.probe["count"]


@contextlib.contextmanager
def counting_client(rig: Rig) -> Iterator[Running]:
    """The client on the third host; the block begins when it is connected."""
    command = ["python3", "/opt/rig/guests/redis_client.py", ADDRESS, "--seconds", "86400",
               "--gaps", waits.WORTH_A_NOTE]
    with rig.start("client", *command) as running:
        wait_for(lambda: "connected" in running.stderr, "the client is connected")
        time.sleep(0.5)
        yield running


def move(rig: Rig, source: str, destination: str, number: int) -> Hop:
    """One hop. An attempt that fails and leaves the container running is noted, and repeated."""
    failures: list[str] = []
    while True:
        outcome = rig.migrator(source, "migrate", NAME, "-d", f"root@{destination}", "--json")
        if outcome.status == 0:
            frozen_at = float(rig.status(source, NAME)["frozen_at"])
            return Hop(number, source, destination, round(outcome.json["frozen_seconds"] * 1000, 1),
                       outcome.json["seconds"], frozen_at, os.getloadavg()[0], failures=failures)
        failures.append(f"exit status {outcome.status}: {outcome.error['message']}")
        keep_logs(rig, number)
        if outcome.status != RUNS_AGAIN or len(failures) > 2:
            raise AssertionError(str(outcome))


def keep_logs(rig: Rig, number: int) -> None:
    """Save CRIU's logs of a failed attempt, so that they survive the rig."""
    folder = TREE / "build" / "endurance-logs"
    folder.mkdir(parents=True, exist_ok=True)
    for host in LXC_HOSTS:
        text = rig.sh(host, "cd /var/log/migrator && tail -n +1 -- * /dev/null", check=False)
        (folder / f"{number}-{host}.log").write_text(text)


def counted(rig: Rig, earlier: list[dict[str, dict[str, int]]]) -> dict[str, dict[str, int]]:
    """What there is on both hosts now; what is only about to end gets a moment."""
    end = time.monotonic() + SETTLE_SECONDS
    while True:
        found = {host: json.loads(rig.exec(host, "python3", "-", NAME, input=Path(traces.__file__).read_text()).stdout)
                 for host in LXC_HOSTS}
        if not earlier or time.monotonic() > end or not grown([earlier[0], found]):
            return found
        time.sleep(0.3)


# --- the verdict ----------------------------------------------------------------------------------------------


def wrong(run: Run) -> list[str]:
    """Everything that is not as it should be, in words."""
    found = []
    if run.client and (run.client["lost"] or run.client["wrong"] or run.client["problem"]):
        found.append(f"the client lost {run.client['lost']} answers, {run.client['wrong']} were wrong; "
                     f"{run.client['problem'] or 'its connection survived'}")
    if not run.probe.get("intact"):
        found.append(f"the container is not intact: {run.probe}")
    if run.started_anew:
        found.append("the container was started anew")
    for hop in run.hops:
        found += [f"hop {hop.number} needed another attempt: {failure}" for failure in hop.failures]
    for what, values in series(run).items():
        first, last = ends(values)
        if len(values) >= 2 * FIRST and statistics.median(last) > SLOWER * statistics.median(first) + SLACK_MS:
            before, after = (statistics.median(end) for end in ends([hop.load for hop in run.hops]))
            found.append(f"{what}: the median went from {statistics.median(first):.0f} to {statistics.median(last):.0f}"
                         f" ms, while the machine's load average went from {before:.1f} to {after:.1f}")
    return found + grown(run.counts)


def series(run: Run) -> dict[str, list[float]]:
    """What must not get slower: ms by hop. The first hop has more to do, as the destination has nothing yet."""
    found = {"frozen": [hop.frozen_ms for hop in run.hops]}
    gaps = [hop.gap_ms for hop in run.hops if hop.gap_ms is not None]
    return found | ({"longest wait of the client": gaps} if gaps else {}) | {
        "whole move": [hop.seconds * 1000 for hop in run.hops[1:]]}


def ends(values: list[float]) -> tuple[list[float], list[float]]:
    """The first and the last few."""
    count = max(1, min(FIRST, len(values) // 2))
    return values[:count], values[-count:]


def tables(run: Run) -> str:
    when = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    again = sum(len(hop.failures) for hop in run.hops)
    lines = [f"Measured {when}, Linux {platform.release()}, {os.cpu_count()} cores: {len(run.counts)} round trips of a "
             f"`{run.guest}` guest, {len(run.hops)} moves, {again} failed attempts. The machine's load average was "
             f"{statistics.median(hop.load for hop in run.hops):.1f} (median)."]
    if run.client:
        lines += ["", f"The client sent {run.client['requests']} requests in {run.client['seconds']:.0f} s through one "
                  f"connection; answers lost: {run.client['lost']}, wrong: {run.client['wrong']}."]
    lines += ["", f"| ms | median | worst | median of the first {FIRST} | of the last {FIRST} |",
              "| --- | ---: | ---: | ---: | ---: |"]
    for what, values in series(run).items():
        first, last = ends(values)
        figures = [statistics.median(values), max(values), statistics.median(first), statistics.median(last)]
        lines.append(f"| {what} | {' | '.join(f'{figure:.0f}' for figure in figures)} |")
    lines += ["", *growth_table(run.counts), ""]
    found = wrong(run)
    return "\n".join([*lines, "Nothing was lost, and nothing grew." if not found else "Not as expected:",
                      *(f"- {line}" for line in found)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
