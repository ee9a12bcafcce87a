# SPDX-License-Identifier: GPL-2.0-or-later
"""Whoever does not own the container does not start it: not by hand, and not at boot after a crash."""

from __future__ import annotations

from tests.rig.conftest import CleanHosts
from tests.rig.harness import DESTINATION, Rig
from tests.rig.held import held


def prepared(rig: Rig) -> None:
    rig.guest("hosta", "c1", "tick", config=["lxc.start.auto = 1"])
    rig.migrator("hosta", "prepare-data", "c1", "-d", DESTINATION).expect(0)
    rig.migrator("hostb", "import-data", "c1").expect(0)


def refuses_to_start(rig: Rig, host: str) -> None:
    """Neither lxc-start nor what runs at boot (lxc-autostart) starts it."""
    assert rig.exec(host, "lxc-start", "-n", "c1", check=False).status != 0
    rig.exec(host, "lxc-autostart", check=False)
    assert rig.sh(host, "lxc-info -n c1 -sH").strip() == "STOPPED"


def test_a_source_that_crashed_after_the_hand_over_does_not_start_it_again(rig: Rig, clean_hosts: CleanHosts) -> None:
    clean_hosts.allow("snapshot")
    prepared(rig)
    refuses_to_start(rig, "hostb")
    rig.migrator("hosta", "create-dump", "c1", "-d", DESTINATION).expect(0)
    # What a reboot does to a frozen container.
    rig.sh("hosta", "echo 1 >/sys/fs/cgroup/lxc.payload.c1/cgroup.kill; lxc-wait -n c1 -s STOPPED -t 200")
    refuses_to_start(rig, "hosta")
    rig.migrator("hostb", "restore-dump", "c1").expect(0)
    rig.migrator("hosta", "finish", "c1").expect(0)
    assert rig.probe("hostb", "c1")["intact"]
    refuses_to_start(rig, "hosta")
    # Where it runs it may be started again, as any container.
    rig.sh("hostb", "lxc-stop -n c1 -t 10 && lxc-start -n c1")
    assert "migrator fence" not in rig.read("hostb", "/pool/c1/config")


def test_after_a_rollback_it_starts_as_before(rig: Rig, clean_hosts: CleanHosts) -> None:
    prepared(rig)
    before = rig.read("hosta", "/pool/c1/config")
    rig.migrator("hosta", "create-dump", "c1", "-d", DESTINATION).expect(0)
    rig.migrator("hosta", "rollback", "c1").expect(0)
    assert rig.probe("hosta", "c1")["intact"]
    assert rig.read("hosta", "/pool/c1/config") == before
    assert rig.sh("hosta", "ls /pool/c1").split() == ["config", "rootfs"]
    rig.sh("hosta", "lxc-stop -n c1 -t 10 && lxc-start -n c1")


def test_a_destination_that_crashed_while_restoring_does_not_start_it_anew(rig: Rig, clean_hosts: CleanHosts) -> None:
    """A start at boot would be one without memory, on a disk that the source's frozen memory does not know."""
    prepared(rig)
    start = rig.probe("hosta", "c1")["start"]
    rig.migrator("hosta", "create-dump", "c1", "-d", DESTINATION).expect(0)
    restore = ("migrator", "restore-dump", "c1")
    with held(rig, "hostb", "criu", '[ "$1" = restore ]') as hold, rig.start("hostb", *restore) as restoring:
        hold.wait("the restore has begun")
        restoring.signal(9)
        # What a reboot does: every process ends, and /run is empty.
        rig.sh("hostb", "pkill -9 -x 'migrator|lxc-checkpoint|criu|sleep'; umount -l /run/migrator/*;"
                        "rm -rf /run/migrator /run/lxc; true")
    refuses_to_start(rig, "hostb")
    rig.migrator("hosta", "rollback", "c1").expect(0)
    found = rig.probe("hosta", "c1")
    assert found["intact"] and found["start"] == start
