# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures of the tests that need two hosts.

The rig is up from the first test that asks for it until the end of the session, however that ends; afterwards the
machine must be as it was. `MIGRATOR_RIG` names another instance than `test`, and with `MIGRATOR_RIG_KEEP=1` it is left
running: both for who works on a test and runs it again and again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from harness.rig import Rig
from tests.rig.sessions import clean_hosts, pytest_runtest_makereport, rig_of

__all__ = ["clean_hosts", "limited", "pytest_runtest_makereport", "rig"]

KEYS = "/root/.ssh/authorized_keys"


@pytest.fixture(scope="session")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """The two-host rig, with migrator installed from the working tree."""
    yield from rig_of(tmp_path_factory.getbasetemp())


@pytest.fixture
def limited(rig: Rig) -> Iterator[Callable[[str], None]]:
    """Has hosta's key at hostb do just what `serve --only` of these words allows."""
    key = rig.read("hostb", KEYS).strip()
    assert key.startswith("ssh-ed25519 ")

    def limit(words: str) -> None:
        # The line as docs/tunnel.md and `migrator serve --help` have it.
        rig.put("hostb", KEYS, f'restrict,command="migrator serve --only {words}" {key}\n')

    yield limit
    rig.put("hostb", KEYS, f"{key}\n")
