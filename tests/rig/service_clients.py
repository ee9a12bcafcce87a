# SPDX-License-Identifier: GPL-2.0-or-later
"""Clients of a guest's services, each with one connection that is never opened again: see vagrant/guests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from harness.rig import Rig, wait_for

PROGRAM = "/opt/rig/guests/service_clients.py"


@contextlib.contextmanager
def clients_of(rig: Rig, address: str, *services: str) -> Iterator[dict[str, dict[str, Any]]]:
    """They ask while the block runs, and once more at its end; nothing may be lost or wrong.

    After the block it has what each of them has seen.
    """
    seen: dict[str, dict[str, Any]] = {}
    with rig.start("client", "python3", PROGRAM, address, *services) as clients:
        wait_for(lambda: "connected" in clients.stderr, "they are connected")
        yield seen
        clients.signal(15)
        outcome = clients.wait()
    seen.update(outcome.expect(0).json)
    assert set(seen) == set(services)
    assert all(each["answers"] > 1 for each in seen.values()), seen
