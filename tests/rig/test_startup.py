# SPDX-License-Identifier: GPL-2.0-or-later
"""Two separate commands lie between freeze and thaw: how long one takes to start is downtime."""

from __future__ import annotations

from tests.rig.harness import LXC_HOSTS, Rig

LIMIT_MS = 150.0

# The best of several: this tells how fast it can start, not what else the machine does.
MEASURE = """
import subprocess, time
took = []
for _ in range(12):
    begun = time.perf_counter()
    subprocess.run(["migrator", "--version"], stdout=subprocess.DEVNULL, check=True)
    took.append(time.perf_counter() - begun)
print(min(took) * 1000)
"""


def test_version_is_quick(rig: Rig) -> None:
    assert rig.exec("hosta", "migrator", "--version").stdout.startswith("migrator ")
    took = float(rig.exec("hosta", "python3", "-c", MEASURE).stdout)
    assert took < LIMIT_MS


def test_help_and_version_need_no_root(rig: Rig) -> None:
    for host in LXC_HOSTS:
        for argument in ("--version", "--help"):
            rig.exec(host, "setpriv", "--reuid", "65534", "--clear-groups", "migrator", argument)
        outcome = rig.exec(host, "setpriv", "--reuid", "65534", "--clear-groups", "migrator", "status", check=False)
        assert outcome.status == 10
        assert "needs root" in outcome.stderr
