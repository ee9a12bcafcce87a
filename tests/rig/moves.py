# SPDX-License-Identifier: GPL-2.0-or-later
"""`migrator migrate` between the two hosts, and what it must have brought about."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from harness.rig import DESTINATION, Outcome, Rig
from tests.rig.clean_hosts import CleanHosts

TO_B = ("-d", DESTINATION)
ALL_AT_ONCE = ("migrator", "migrate", "c1", *TO_B, "--json")
HOSTS = ("hosta", "hostb")


def other(host: str) -> str:
    return HOSTS[1 - HOSTS.index(host)]


def migrate(rig: Rig, name: str, source: str, *options: str) -> Outcome:
    return rig.migrator(source, "migrate", name, "-d", f"root@{other(source)}", "--json", *options)


def events(outcome: Outcome, kind: str) -> list[dict[str, object]]:
    """What it said on its way, of one kind."""
    lines = [json.loads(line) for line in outcome.stderr.splitlines() if line.startswith("{")]
    return [line for line in lines if line["type"] == kind]


def runs_only_on(rig: Rig, host: str, start: str = "") -> None:
    """One copy runs, it is intact, it is the one that was started, and nothing of an attempt is left."""
    found = rig.probe(host, "c1")
    assert found["running"] and found["intact"], found
    assert not start or found["start"] == start, "it was started anew"
    state = rig.exec(other(host), "lxc-info", "-n", "c1", "-sH", check=False)
    assert state.status or state.stdout.strip() == "STOPPED", state
    left = [line for line in rig.leftovers() if ": snapshot: " not in line]
    assert not left, left


def guest_there(rig: Rig, clean_hosts: CleanHosts) -> Callable[[str], None]:
    """A tick guest on hosta; the function proves that it runs, intact and only there, on a host."""
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "tick", ip="10.0.3.120")
    start = rig.probe("hosta", "c1")["start"]

    def there(host: str) -> None:
        runs_only_on(rig, host, start)
        rig.reaches("client", "10.0.3.120")

    return there


guest = pytest.fixture(guest_there)
# Seconds of --max-downtime: each has the next one tried where this machine was too slow to come to the restore at all.
LIMITS = ("3", "12", "48", "192")


def arrived(rig: Rig) -> int:
    return int(rig.sh("hostb", "stat -c %s /pool/.migrator/c1+/*.spool/disk-1 2>/dev/null || echo 0"))
