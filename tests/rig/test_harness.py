# SPDX-License-Identifier: GPL-2.0-or-later
"""The harness finds what it is there to find: without this, "nothing was left" would mean nothing."""

from __future__ import annotations

import os
import subprocess

import pytest

from harness import rig as harness
from harness.rig import Rig, wait_for
from tests.rig import machine
from tests.rig.clean_hosts import CleanHosts

PLANTED = {
    "snapshot": "mkdir -p /pool/.migrator/c1 && btrfs -q subvolume create /pool/.migrator/c1/0badc0de.1",
    "spool": "mkdir -p /pool/.migrator/c1+/0badc0de.spool",
    "images": "mkdir -p /run/migrator/0badc0de",
    "firewall": "nft add table inet CRIU-1",
    "process": "cp /bin/sleep /tmp/criu && /tmp/criu 600 >/dev/null 2>&1 &",
    "mount": "mkdir -p /run/migrator/0badc0de && mount -t tmpfs none /run/migrator/0badc0de",
}


@pytest.mark.parametrize("kind", PLANTED)
def test_leftovers_are_found_and_purged(rig: Rig, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rig.leftovers() == []
    monkeypatch.setattr(harness, "PROCESS_LIMIT", 1.0)  # nothing here ends by itself
    rig.sh("hostb", PLANTED[kind])
    wait_for(lambda: kind in {line.split(": ")[1] for line in rig.leftovers()}, f"the {kind} is found")
    if kind == "mount":
        rig.sh("hostb", "umount /run/migrator/0badc0de")
    assert rig.purge() == []


def test_a_frozen_guest_is_purged(rig: Rig, clean_hosts: CleanHosts) -> None:
    rig.guest("hosta", "c1", "tick", ip="10.0.3.50")
    assert rig.probe("hosta", "c1")["intact"]
    rig.sh("hosta", "echo 1 >/sys/fs/cgroup/lxc.payload.c1/cgroup.freeze")
    assert rig.purge() == []
    assert rig.sh("hosta", "ls /pool") == ""


def test_the_machine_is_watched(rig: Rig, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A process that a test has started shows, and so does all that the rig itself is made of."""
    mark = f"{machine.MARK}={os.environ[machine.MARK]}"
    temporary = tmp_path_factory.getbasetemp()
    before = machine.state(rig.instance, temporary)
    with subprocess.Popen(["sleep", "600"]) as process:
        try:
            assert any(str(process.pid) in line for line in machine.traces(rig.instance, mark))
        finally:
            process.kill()
    assert machine.state(rig.instance, temporary) == before
    # The rig itself is such a trace, as long as it runs.
    kinds = {line.split(": ")[0] for line in before if "migrator-rig" in line}
    assert kinds >= {"file", "cgroup", "loop device"}
    assert any("busybox" in line for line in machine.traces(rig.instance, mark))
