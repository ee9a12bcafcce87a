# SPDX-License-Identifier: GPL-2.0-or-later
"""Containers move between two stock Debian 13 machines, confined by AppArmor, with limits.

In the rig of namespaces neither can be seen: there is no AppArmor, and it has few controllers.
"""

from __future__ import annotations

from harness.rig import Rig
from tests.rig.clean_hosts import CleanHosts
from tests.rig.moves import migrate, other, runs_only_on

# How long a container may stand still is a machine's without KVM, and that is ten times longer.
PATIENT = ("--max-downtime", "600", "--timeout", "120")
LIMITS = {"memory.max": str(256 << 20), "pids.max": "100", "cpu.max": "80000 100000"}
CONFIG = [*(f"lxc.cgroup2.{key} = {value}" for key, value in LIMITS.items()), "lxc.cgroup2.devices.deny = a",
          "lxc.cgroup2.devices.allow = c 1:3 rwm"]
CONFINED = """set -e
pid=$(lxc-info -n "$1" -pH) root=/sys/fs/cgroup/lxc.payload.$1
cat /proc/$pid/attr/current
for file in memory.max pids.max cpu.max; do cat $root/$file; done
for task in $(find $root -name cgroup.procs -exec cat {} +); do
    echo $(sed -n 's/^Uid:\\t\\([0-9]*\\).*/\\1/p' /proc/$task/status) $(cat /proc/$task/attr/current)
done | sort | uniq -c
lxc-attach -n "$1" -- /bin/busybox sh -c '
    busybox mknod /made b 254 16; (: </made) && echo opened || echo denied; busybox rm -f /made
    (: >/dev/null) && echo allowed' 2>/dev/null
"""
"""Of a container: its profile, its limits, how many of its tasks are each user's and how they are confined; and whether
it may open this machine's second disk, and /dev/null."""


def confined(rig: Rig, host: str, name: str) -> str:
    return rig.exec(host, "sh", "-c", CONFINED, "sh", name).stdout


def test_limits_and_profile_over_three_hops(rig: Rig, clean_hosts: CleanHosts) -> None:
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "tick", ip="10.0.3.120", config=CONFIG)
    start = rig.probe("hosta", "c1")["start"]
    before = confined(rig, "hosta", "c1")
    assert before.splitlines()[1:4] == list(LIMITS.values())
    assert "(enforce)" in before.splitlines()[0]
    assert before.splitlines()[-2:] == ["denied", "allowed"]
    for source in ("hosta", "hostb", "hosta"):
        migrate(rig, "c1", source, *PATIENT).expect(0)
        assert confined(rig, other(source), "c1") == before
        runs_only_on(rig, other(source), start)
        rig.reaches("client", "10.0.3.120")
