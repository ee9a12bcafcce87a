# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest that moves without its memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness.rig import Rig
from tests.rig.clean_hosts import CleanHosts
from tests.rig.moves import ALL_AT_ONCE, other

WITHOUT = (*ALL_AT_ONCE, "--no-memory")
SENT_STOPPED = '[ "$1" = send ] && [ "$(lxc-info -n c1 -sH)" = STOPPED ]'


def runs_only_on(rig: Rig, host: str, starts: int) -> None:
    """One copy runs, it was started so many times, what it had on disk is there, and nothing of an attempt is left."""
    found = rig.probe(host, "c1")
    assert found["running"] and found["advances"] and found["errors"] == 0 and found["starts"] == starts, found
    state = rig.exec(other(host), "lxc-info", "-n", "c1", "-sH", check=False)
    assert state.status or state.stdout.strip() == "STOPPED", state
    left = [line for line in rig.leftovers() if ": snapshot: " not in line]
    assert not left, left
    rig.reaches("client", "10.0.3.120")


@pytest.fixture
def guest(rig: Rig, clean_hosts: CleanHosts) -> Callable[[str, int], None]:
    """A guest with a user namespace on hosta; the function proves that it runs only on a host, started so often."""
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "userns", ip="10.0.3.120")
    return lambda host, starts: runs_only_on(rig, host, starts)
