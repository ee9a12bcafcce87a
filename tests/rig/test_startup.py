# SPDX-License-Identifier: GPL-2.0-or-later
"""Two separate commands lie between freeze and thaw: how long one takes to start is downtime."""

from __future__ import annotations

from tests.rig.harness import LXC_HOSTS, Rig

# Starts of an interpreter that imports asyncio: 150 ms where nothing else runs. It takes four; paramiko would add two.
LIMIT = 6.0

# Processor time, in which a busy machine shows less, and a yardstick beside it, in which that shows as much.
MEASURE = """
import resource, subprocess
def cost(*argv):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(argv, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
yardstick = ("/opt/migrator/venv/bin/python", "-c", "import asyncio")
pairs = [(cost("migrator", "--version"), cost(*yardstick)) for _ in range(15)]
print(min(each for each, _ in pairs) / min(each for _, each in pairs))
"""


def test_version_is_quick(rig: Rig) -> None:
    assert rig.exec("hosta", "migrator", "--version").stdout.startswith("migrator ")
    took = float(rig.exec("hosta", "python3", "-c", MEASURE).stdout)
    assert took < LIMIT


def test_help_and_version_need_no_root(rig: Rig) -> None:
    for host in LXC_HOSTS:
        for argument in ("--version", "--help"):
            rig.exec(host, "setpriv", "--reuid", "65534", "--clear-groups", "migrator", argument)
        outcome = rig.exec(host, "setpriv", "--reuid", "65534", "--clear-groups", "migrator", "status", check=False)
        assert outcome.status == 10
        assert "needs root" in outcome.stderr
