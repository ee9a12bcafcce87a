# SPDX-License-Identifier: GPL-2.0-or-later
"""A short run of bench/endurance.py: a container that moves to and fro under load loses nothing, and nothing grows."""

from __future__ import annotations

import pytest

from bench import endurance
from harness.rig import Rig
from tests.rig.clean_hosts import CleanHosts

TRIPS = 3


@pytest.mark.nightly
def test_nothing_is_lost_and_nothing_grows(rig: Rig, clean_hosts: CleanHosts) -> None:
    clean_hosts.allow("snapshot")
    rig.guest("hosta", endurance.NAME, "redis", ip=endurance.ADDRESS)
    run = endurance.Run("redis")
    for hop in endurance.go(rig, run, TRIPS):
        assert not hop.failures, hop
    assert run.client["requests"] > 10 * len(run.hops), run.client
    assert all(hop.gap_ms for hop in run.hops), run.hops
    assert endurance.wrong(run) == []
