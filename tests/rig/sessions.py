# SPDX-License-Identifier: GPL-2.0-or-later
"""What a session of tests with two hosts begins and ends with, of whichever kind the hosts are: for the conftests."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from harness.rig import Rig
from tests.rig import machine
from tests.rig.clean_hosts import CleanHosts
from tests.rig.told import as_text, told

TOLD = pytest.StashKey[bool]()  # of a test: what the hosts knew is in its report already


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test on the rig that fails tells what both hosts knew then. Fixtures have not cleaned anything up yet."""
    report = yield
    rigs = [value for value in getattr(item, "funcargs", {}).values() if isinstance(value, Rig)]
    if report.failed and report.when != "teardown" and rigs:
        item.stash[TOLD] = True
        report.sections += told(rigs[0])
    return report


def rig_of(temporary: Path, *options: str) -> Iterator[Rig]:
    """Start a rig with these options of `rig up`, end it afterwards, and look for what is left; `temporary` is ours."""
    instance = os.environ.get("MIGRATOR_RIG") or "test"
    mark = os.environ[machine.MARK] = secrets.token_hex(8)  # every process that this session starts carries it
    before = machine.state(instance, temporary)
    # pytest ends in an orderly way at Ctrl-C; so it shall when a CI system ends it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    made = Rig(instance, *options)
    if os.environ.get("MIGRATOR_RIG_KEEP"):
        made.up()
        made.purge()
        yield made
        return
    try:
        made.down()  # what a killed session has left
        made.up()
        yield made
    finally:
        made.down()
    left = [*machine.state(instance, temporary) - before, *machine.traces(instance, f"{machine.MARK}={mark}")]
    assert not left, "the tests have left on this machine:\n" + "\n".join(sorted(left))


@pytest.fixture
def clean_hosts(rig: Rig, request: pytest.FixtureRequest) -> Iterator[CleanHosts]:
    """Two hosts without guests; at the end migrator must have cleaned up after itself, and then all guests go."""
    hosts = CleanHosts(rig)
    yield hosts
    try:
        left = hosts.unexpected()
        if left and TOLD not in request.node.stash:
            print(as_text(told(rig)))
        resisting = rig.purge()
    except (AssertionError, subprocess.TimeoutExpired):  # a host does not even answer
        rig.down()
        rig.up()
        raise
    if resisting:  # the next test shall not suffer for it
        rig.down()
        rig.up()
    assert not left, "migrator has left behind:\n" + "\n".join(left)
    assert not resisting, "this could not be removed from the hosts:\n" + "\n".join(resisting)
