# SPDX-License-Identifier: GPL-2.0-or-later
"""A short run of bench/endurance.py: a container that moves to and fro under load loses nothing, and nothing grows."""

from __future__ import annotations

import statistics

from bench import endurance
from tests.rig.conftest import CleanHosts
from tests.rig.harness import Rig

TRIPS = 3


def test_nothing_is_lost_and_nothing_grows(rig: Rig, clean_hosts: CleanHosts) -> None:
    clean_hosts.allow("snapshot")
    rig.guest("hosta", endurance.NAME, "redis", ip=endurance.ADDRESS)
    run = endurance.Run("redis")
    for hop in endurance.go(rig, run, TRIPS):
        assert not hop.failures, hop
    assert run.client["requests"] > 100 * len(run.hops), run.client
    # Not every single one: a disk that is slow to take the record of the freeze makes that seem to begin too early.
    assert all(hop.gap_ms for hop in run.hops), run.hops
    assert statistics.median((hop.gap_ms or 0) / hop.frozen_ms for hop in run.hops) > 0.5, run.hops
    assert endurance.wrong(run) == []
