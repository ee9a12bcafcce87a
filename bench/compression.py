# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether compressing what is sent shortens the time frozen: a container is moved back and forth, with and without.

    python -m bench.compression [--rounds N] [--mbit N] [--mebibytes N] [--json]

`zstd` is migrator's own way: a segment is compressed if it would have to wait for the network anyway. `never` sends
everything as it is. Both take turns in the same run on the same two hosts, with a link of --mbit between them (default:
as fast as this machine). Judge the ratio of their medians, not the figures.

On a busy machine with two cores, `never` was 0.85 to 0.95 of `zstd` without a limit, because zstd takes the processor
away from CRIU, and 2.1 times `zstd` with --mbit 400. Omitting zstd when the network carried more than 150 MB/s saved a
tenth of the processor time, but no time frozen that could be told from the noise of 70 moves each: so it was not kept.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from typing import Any

from bench.hosts import NAME, on, rig, two_hosts

WAYS = {
    "zstd": "",
    "never": "migrator.transfer.stream_reader._Compressor.try_on = lambda *_: None",
}
PROGRAM = """\
import resource, sys, migrator.transfer.stream_reader, migrator.__main__
{}
status = migrator.__main__.main()
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime)
sys.exit(status)
"""


def hop(source: str, destination: str, way: str) -> dict[str, Any]:
    """One move: what `migrator migrate --json` prints about it, and the processor seconds it used on the source."""
    program = PROGRAM.format(WAYS[way])
    text = on(source, "/opt/migrator/venv/bin/python", "-c", program, "migrate", NAME, "-d", f"root@{destination}",
              "--json", "-q", show=False)
    result, used = text.splitlines()[-2:]
    return {**json.loads(result), "cpu_seconds": float(used)}


def measure(rounds: int, mebibytes: int) -> dict[str, list[dict[str, Any]]]:
    rig("guest", "hosta", NAME, "redis", "--ip", "10.0.3.100", "--size", str(mebibytes))
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    hosts = ("hosta", "hostb")
    hop(*hosts, "zstd")  # the whole disk
    for number in range(rounds * len(WAYS)):
        hosts = (hosts[1], hosts[0])
        way = [*WAYS][(number + number // len(WAYS)) % len(WAYS)]  # so that each way is used in both directions
        found[way].append(hop(*hosts, way))
        print(f"{way}: frozen for {found[way][-1]['frozen_seconds'] * 1000:.0f} ms", file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--mbit", type=int)
    parser.add_argument("--mebibytes", type=int, default=128)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with two_hosts(*(["--mbit", str(args.mbit)] if args.mbit else [])):
        found = measure(args.rounds, args.mebibytes)
    medians = {way: {key: statistics.median(hop[key] for hop in hops) for key in ("frozen_seconds", "cpu_seconds")}
               for way, hops in found.items()}
    if args.json:
        print(json.dumps({"mbit": args.mbit, "mebibytes": args.mebibytes, "medians": medians, "hops": found}, indent=2))
        return
    for way, median in medians.items():
        print(f"{way:8} frozen for {median['frozen_seconds'] * 1000:5.0f} ms, "
              f"{median['frozen_seconds'] / medians['zstd']['frozen_seconds']:.2f} of zstd; "
              f"{median['cpu_seconds']:.2f} s of the source's processor")


if __name__ == "__main__":
    main()
