# SPDX-License-Identifier: GPL-2.0-or-later
"""Whoever does not own the container does not start it: not by hand, and not at boot after a crash."""

from __future__ import annotations

import re

import pytest

from harness.rig import DESTINATION, Rig, wait_for
from tests.rig.boot_guest import refuses_to_start
from tests.rig.clean_hosts import CleanHosts
from tests.rig.held import RESTORE, held


def prepared(rig: Rig) -> None:
    rig.guest("hosta", "c1", "tick", config=["lxc.start.auto = 1"])
    rig.migrator("hosta", "prepare-data", "c1", "-d", DESTINATION).expect(0)
    rig.migrator("hostb", "import-data", "c1").expect(0)


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


@pytest.mark.parametrize("cleared", [[], ["lxc.hook.pre-start ="]], ids=["own-hooks", "after-a-clearing-line"])
def test_a_start_that_is_refused_runs_no_hook_of_the_container(rig: Rig, clean_hosts: CleanHosts,
                                                              cleared: list[str]) -> None:
    clean_hosts.allow("snapshot")
    for host in ("hosta", "hostb"):
        rig.put(host, "/run/own-hook", 'echo "$3" >>/run/own-hooks\n')
        rig.sh(host, "rm -f /run/own-hooks")
    hooks = [f"lxc.hook.{each} = /bin/sh /run/own-hook" for each in ("pre-start", "stop", "post-stop")]
    rig.guest("hosta", "c1", "tick", config=[*hooks[:1], *cleared, *hooks])
    assert set(rig.read("hosta", "/run/own-hooks").split()) == {"pre-start"}, "they do run at a start"
    rig.migrator("hosta", "migrate", "c1", "-d", DESTINATION).expect(0)
    rig.sh("hosta", "rm -f /run/own-hooks")
    refuses_to_start(rig, "hosta")
    assert rig.sh("hosta", "cat /run/own-hooks 2>/dev/null", check=False) == ""
    assert rig.sh("hosta", "ls /pool/c1").split() == ["config", "migrator-fence", "rootfs"]
    # Where it runs they are in force again.
    rig.sh("hostb", "rm -f /run/own-hooks; lxc-stop -n c1 -t 10 && lxc-start -n c1")
    assert set(rig.read("hostb", "/run/own-hooks").split()) == {"stop", "post-stop", "pre-start"}


def test_a_start_that_is_refused_destroys_nothing(rig: Rig, clean_hosts: CleanHosts) -> None:
    """LXC destroys what is ephemeral at the end of a start that a hook has refused."""
    rig.guest("hosta", "c1", "tick", config=["lxc.ephemeral = 1"])
    rig.migrator("hosta", "prepare-data", "c1", "-d", DESTINATION).expect(0)
    rig.migrator("hostb", "import-data", "c1").expect(0)
    before = rig.sh("hostb", "ls /pool/c1")
    refuses_to_start(rig, "hostb")
    assert rig.sh("hostb", "ls /pool/c1") == before
    rig.migrator("hosta", "rollback", "c1").expect(0)


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


def test_what_runs_past_its_fence_is_not_handed_over(rig: Rig, clean_hosts: CleanHosts) -> None:
    """What keeps a host's configurations in order has written it anew, and a reboot has started it."""
    prepared(rig)
    before = rig.read("hosta", "/pool/c1/config")
    rig.migrator("hosta", "create-dump", "c1", "-d", DESTINATION).expect(0)
    rig.sh("hosta", "echo 1 >/sys/fs/cgroup/lxc.payload.c1/cgroup.kill; lxc-wait -n c1 -s STOPPED -t 200")
    rig.put("hosta", "/pool/c1/config", before)
    rig.sh("hosta", "lxc-autostart")
    init = rig.sh("hosta", "lxc-info -n c1 -pH")
    failed = rig.migrator("hosta", "resume", "c1", "--json").expect(3).json["error"]
    assert "where it should be frozen or stopped" in failed["message"]
    assert rig.sh("hosta", "lxc-info -n c1 -pH") == init, "it is left as it is"
    assert rig.read("hosta", "/pool/c1/config") == before
    assert rig.status("hosta", "c1")["state"] == "rolled-back" and rig.status("hostb", "c1")["state"] == "abandoned"


def test_a_fence_that_was_taken_away_is_put_back(rig: Rig, clean_hosts: CleanHosts) -> None:
    clean_hosts.allow("snapshot")
    prepared(rig)
    before = rig.read("hosta", "/pool/c1/config")
    rig.migrator("hosta", "create-dump", "c1", "-d", DESTINATION).expect(0)
    rig.put("hosta", "/pool/c1/config", before)
    with held(rig, "hostb", "criu", RESTORE) as hold, rig.start("hosta", "migrator", "resume", "c1") as going_on:
        hold.wait("it is restored")
        assert "migrator fence" in rig.read("hosta", "/pool/c1/config")
        hold.release()
        going_on.wait().expect(0)
    assert rig.probe("hostb", "c1")["intact"]
    refuses_to_start(rig, "hosta")


def test_a_copy_with_subvolumes_inside_stays(rig: Rig, clean_hosts: CleanHosts) -> None:
    """Whoever has made them: no move takes them along."""
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "tick")
    rig.migrator("hosta", "migrate", "c1", "-d", DESTINATION).expect(0)
    rig.sh("hosta", "btrfs subvolume create /pool/c1/rootfs/made && echo 1 >/pool/c1/rootfs/made/last")
    told = rig.migrator("hosta", "cleanup", "c1", "--json").expect(0).json
    assert told["left"] == ["/pool/c1/rootfs/made"]
    assert rig.read("hosta", "/pool/c1/rootfs/made/last") == "1\n"
    refuses_to_start(rig, "hosta")
    rig.sh("hosta", "btrfs subvolume delete /pool/c1/rootfs/made")
    rig.migrator("hosta", "cleanup", "c1").expect(0)
    assert rig.sh("hosta", "ls /pool").split() == []


def test_nothing_is_handed_over_while_lxc_autostart_is_under_way(rig: Rig, clean_hosts: CleanHosts) -> None:
    """It has read all configurations, and sleeps behind its first start, whose monitor is no lxc-autostart."""
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c2", "tick", config=["lxc.start.auto = 1", "lxc.start.order = 1", "lxc.start.delay = 100000"])
    rig.sh("hosta", "lxc-stop -k -n c2; lxc-wait -n c2 -s STOPPED -t 200")
    rig.guest("hosta", "c1", "tick", config=["lxc.start.auto = 1", "lxc.start.order = 2"])
    start = rig.probe("hosta", "c1")["start"]
    with rig.start("hosta", "lxc-autostart"):
        wait_for(lambda: rig.sh("hosta", "lxc-info -n c2 -sH").strip() == "RUNNING", "the first one has been started")
        refused = rig.migrator("hosta", "migrate", "c1", "-d", DESTINATION, "--json").expect(27).json["error"]
        assert rig.status("hosta", "c1")["state"] == "prepared"
        found = re.search(r"lxc-autostart \(process (\d+)\)", refused["message"])
        assert found and rig.read("hosta", f"/proc/{found[1]}/comm") == "lxc-autostart\n"
        assert rig.probe("hosta", "c1")["start"] == start
        rig.exec("hosta", "kill", "-9", found[1])
    rig.migrator("hosta", "resume", "c1").expect(0)
    assert rig.probe("hostb", "c1")["intact"]
    assert rig.sh("hosta", "lxc-info -n c1 -sH").strip() == "STOPPED"
