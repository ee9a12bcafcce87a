# SPDX-License-Identifier: GPL-2.0-or-later
"""What several tests of this folder need."""

from __future__ import annotations

from pathlib import Path

import pytest

from migrator.host.mountinfo import parse_mountinfo


@pytest.fixture
def pressure() -> str:
    """A file of pressure on this machine's cgroups that a trigger can be written to."""
    for line in parse_mountinfo(Path("/proc/self/mountinfo").read_text()):
        path = Path(line.target, "cpu.pressure")
        if line.type == "cgroup2" and path.exists():
            return str(path)
    pytest.skip("this kernel does not tell the pressure on cgroups")
