# SPDX-License-Identifier: GPL-2.0-or-later
"""What may grow on a host while a container moves back and forth, and how much. bench/traces.py counts it."""

from __future__ import annotations

from collections.abc import Sequence

from migrator.record.journal import KEPT

Counts = dict[str, dict[str, int]]  # by host

MIB = 1 << 20

# How far a figure may be above its value after the first trip; 0 for all others.
SLACK = {
    "bytes of the disk": 16 * MIB,  # btrfs frees what was deleted some time later
    "its memory in bytes": 8 * MIB,  # what a server under load allocates for itself
    "bytes of the monitor's memory": MIB // 2,
    "cgroups that do not end": 10,  # the kernel takes its time
}

# What grows up to a bound: the journal keeps this many ended migrations of a container (migrator/record/journal.py).
BOUND = {
    "addresses that bridges have learnt": 100,  # each is forgotten after 5 minutes
    "migrations in the journal": KEPT + 1,
    "events in the journal": (KEPT + 1) * 50,
    "bytes of the journal": 1 * MIB,
}


def limit(what: str, first: int) -> int:
    """How much of it there may be after a later trip, if there were `first` after the first."""
    return BOUND.get(what, first + SLACK.get(what, 0))


def grown(counts: Sequence[Counts]) -> list[str]:
    """What there is too much of after the last trip, in words."""
    found = []
    for host, last in counts[-1].items():
        for what, value in last.items():
            first = counts[0][host].get(what, 0)
            if value > limit(what, first):
                found.append(f"{host}: {what} went from {first} to {value}, {limit(what, first)} are allowed")
    return found


def growth_table(counts: Sequence[Counts]) -> list[str]:
    """Markdown: each figure after the first, the middle and the last trip, on both hosts, and how much is allowed."""
    chosen = [counts[0], counts[len(counts) // 2], counts[-1]]
    hosts = list(counts[-1])
    heads = [f"{host} after trip {number}" for host in hosts for number in (1, len(counts) // 2 + 1, len(counts))]
    lines = [f"| counted | {' | '.join(heads)} | allowed |", f"| --- |{' ---: |' * (len(heads) + 1)}"]
    for what in dict.fromkeys(key for host in hosts for key in counts[-1][host]):
        cells = [shown(what, sample[host].get(what)) for host in hosts for sample in chosen]
        allowed = f"{shown(what, BOUND[what])} in all" if what in BOUND else f"+{shown(what, SLACK.get(what, 0))}"
        name = what.removeprefix("bytes of ").removesuffix(" in bytes")
        lines.append(f"| {name} | {' | '.join(cells)} | {allowed} |")
    return lines


def shown(what: str, value: int | None) -> str:
    if value is None:
        return ""
    return f"{value / MIB:.1f} MiB" if "bytes" in what and value else str(value)
