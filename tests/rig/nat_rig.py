# SPDX-License-Identifier: GPL-2.0-or-later
"""The rig behind NATs, beside the other one, for all tests of a session that want one.

A test module that names this one in `pytest_plugins` has the fixtures.
"""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Generator, Iterator

import pytest

from harness.nats import Nats
from harness.rig import LXC_HOSTS, Rig, Running, wait_for
from tests.rig.told import told


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """As for the other rig: a test that fails tells what both hosts knew then."""
    report = yield
    behind = [value for value in getattr(item, "funcargs", {}).values() if isinstance(value, Nats)]
    if report.failed and report.when != "teardown" and behind:
        report.sections += told(behind[0].rig)
    return report


@pytest.fixture(scope="session")
def nats(rig: Rig) -> Iterator[Nats]:
    """Two paired hosts, each behind routers of its own. `rig` looks at the end for what was left: this ends before."""
    behind = Rig(f"{rig.instance}-nat")
    try:
        yield Nats(behind)
    finally:
        if not os.environ.get("MIGRATOR_RIG_KEEP"):
            behind.down()


@pytest.fixture(scope="module")
def waiting(nats: Nats) -> Iterator[Running]:
    """An agent, behind a port-restricted NAT."""
    nats.set("b", "port-restricted")
    with nats.agent() as running:
        yield running


@pytest.fixture
def agent(nats: Nats, waiting: Running) -> Iterator[Running]:
    """The agent, between two port-restricted NATs; at the end nothing of a tunnel is left on either host."""
    nats.set("a", "port-restricted")
    yield waiting
    wait_for(lambda: not left(nats.rig), "nothing of a tunnel is left")


def left(rig: Rig) -> list[str]:
    """What tunnels have left on the hosts."""
    script = """
        ip -o link show | grep -o 'mig-[0-9a-f]*' | sed 's/^/interface: /'
        nft list tables | grep mig- ; ls /var/run/wireguard 2>/dev/null; pgrep -l -r D,R,S,T wireguard-go
        find /run/migrator/tunnel* -type f 2>/dev/null; true"""
    with concurrent.futures.ThreadPoolExecutor() as both:
        found = both.map(lambda host: [f"{host}: {line}" for line in rig.sh(host, script).splitlines()], LXC_HOSTS)
        return [line for lines in found for line in lines]
