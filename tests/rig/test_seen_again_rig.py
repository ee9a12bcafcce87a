# SPDX-License-Identifier: GPL-2.0-or-later
"""What has changed about a container since it was started, or since the preflight has looked: on real disks, by LXC."""

from __future__ import annotations

from harness.rig import DESTINATION, Rig, wait_for
from tests.rig.clean_hosts import CleanHosts
from tests.rig.held import DUMP, held

MIGRATE = ("migrate", "c1", "-d", DESTINATION, "--json")
PROCESSES = "find /sys/fs/cgroup/lxc.payload.c1 -name cgroup.procs -exec cat {} +"


def test_nothing_is_lost_of_what_has_changed_under_it(rig: Rig, clean_hosts: CleanHosts) -> None:
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "userns", ip="10.0.3.113", config=["lxc.ephemeral = 1"])
    start = rig.probe("hosta", "c1")["start"]
    rig.sh("hosta", "sed -i 's/^lxc.ephemeral = 1/lxc.ephemeral = 0/' /pool/c1/config")
    without = (*MIGRATE, "--no-memory")
    assert "was started as ephemeral" in str(rig.migrator("hosta", *without).expect(30).error["message"])
    # Its disk is not what it was; put back, it can go.
    rig.sh("hosta", "cd /pool/c1; mv rootfs rootfs.old; btrfs subvolume snapshot rootfs.old rootfs")
    assert "rootfs-replaced" in str(rig.migrator("hosta", *MIGRATE).expect(30).error["message"])
    rig.sh("hosta", "cd /pool/c1; btrfs subvolume delete rootfs; mv rootfs.old rootfs")
    # Somebody attaches to it when the preflight has looked.
    with held(rig, "hosta", "criu", DUMP) as criu, rig.start("hosta", "migrator", *MIGRATE) as running:
        criu.wait("it is about to be dumped")
        before = set(rig.sh("hosta", PROCESSES).split())
        with rig.start("hosta", "lxc-attach", "-n", "c1", "--", "sleep", "1005"):
            wait_for(lambda: set(rig.sh("hosta", PROCESSES).split()) - before, "somebody is attached")
            attached = (set(rig.sh("hosta", PROCESSES).split()) - before).pop()
            criu.release()
            error = running.wait().expect(3).error
            assert f"process {attached} was started from outside" in str(error["cause"]["message"])
            # That one has started what it was to, and has ended.
            end = ("pkill", "-9", "-f", "^sleep 1005$")
            wait_for(lambda: rig.exec("hosta", *end, check=False).status == 0, "it sleeps")
    assert rig.probe("hosta", "c1")["start"] == start
    rig.migrator("hosta", *MIGRATE).expect(0)
    found = rig.probe("hostb", "c1")
    assert found["running"] and found["intact"] and found["start"] == start
