# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures of the tests that need two virtual machines: those of tests/rig, on a rig of machines.

`make test-vm` runs them, and nothing else does: without KVM a machine is ten times slower than this one. So nothing
here hangs on how long something takes, and migrator's limits are set wide.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from harness.rig import Rig
from tests.rig.sessions import clean_hosts, pytest_runtest_makereport, rig_of

__all__ = ["clean_hosts", "pytest_runtest_makereport", "rig"]


@pytest.hookimpl(tryfirst=True)  # before tests/selection.py asks for marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "/tests/vm/" in item.path.as_posix():
            item.add_marker("vm")
            item.add_marker(pytest.mark.timeout(1800))


@pytest.fixture(scope="session")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """The two-host rig of virtual machines, without NAT, with migrator installed from its Debian package."""
    os.environ.setdefault("MIGRATOR_RIG", "test-vm")
    yield from rig_of(tmp_path_factory.getbasetemp(), "--vm")
