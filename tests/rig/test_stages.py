# SPDX-License-Identifier: GPL-2.0-or-later
"""The stages by hand between two real hosts: containers of each kind move, and move back."""

from __future__ import annotations

import json
import threading

import pytest

from harness.rig import Rig, wait_for
from tests.rig.clean_hosts import CleanHosts

HOSTS = ("hosta", "hostb")


def other(host: str) -> str:
    return HOSTS[1 - HOSTS.index(host)]


def prepare(rig: Rig, name: str, source: str) -> int:
    """prepare-data and import-data; returns the bytes that were sent."""
    there = other(source)
    sent = rig.migrator(source, "prepare-data", name, "-d", f"root@{there}", "--json").expect(0).json
    rig.migrator(there, "import-data", name).expect(0)
    return int(sent["bytes"])


def move(rig: Rig, name: str, source: str) -> int:
    """All stages by hand; returns the bytes that prepare-data sent."""
    there = other(source)
    sent = prepare(rig, name, source)
    rig.migrator(source, "create-dump", name, "-d", f"root@{there}").expect(0)
    rig.migrator(there, "restore-dump", name).expect(0)
    rig.migrator(source, "finish", name).expect(0)
    return sent


def there_and_back_and_there(rig: Rig, name: str) -> None:
    """A to B to A to B: what the guest holds is right each time, and only the first hop sends everything."""
    start = rig.probe("hosta", name)["start"]
    sizes = []
    for source in ("hosta", "hostb", "hosta"):
        sizes.append(move(rig, name, source))
        found = rig.probe(other(source), name)
        assert found["running"] and found["intact"], found
        assert found["start"] == start, "it was started anew"
        assert rig.sh(source, f"lxc-info -n {name} -sH").strip() == "STOPPED"
    assert max(sizes[1:]) < sizes[0] / 4, f"later hops sent more than an increment: {sizes}"


@pytest.mark.nightly  # as the one with pages below
def test_tick_goes_there_and_back(rig: Rig, clean_hosts: CleanHosts) -> None:
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "tick")
    there_and_back_and_there(rig, "c1")


@pytest.mark.nightly  # test_migrate.py has two hops
def test_memory_pages_survive_three_hops(rig: Rig, clean_hosts: CleanHosts) -> None:
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "memory", size=96, dirty=4)
    there_and_back_and_there(rig, "c1")
    found = rig.probe("hostb", "c1")["memory"]
    assert found["pages"] == 96 * 256
    assert found["bad"] == 0


@pytest.mark.nightly  # in one command it moves in test_migrate.py
def test_container_with_a_user_namespace(rig: Rig, clean_hosts: CleanHosts) -> None:
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "userns", ip="10.0.3.112")
    there_and_back_and_there(rig, "c1")


@pytest.mark.nightly  # as test_migrate.py has it in one command
def test_client_keeps_its_connection(rig: Rig, clean_hosts: CleanHosts) -> None:
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "redis")
    client = ["python3", "/opt/rig/guests/redis_client.py", "10.0.3.100"]
    with rig.start("client", *client) as running:
        wait_for(lambda: "connected" in running.stderr, "the client is connected")
        move(rig, "c1", "hosta")
        moved = rig.probe("hostb", "c1", quick=True)["count"]
        wait_for(lambda: rig.probe("hostb", "c1", quick=True)["count"] > moved + 100, "the client is answered there")
        running.signal(15)
        seen = json.loads(running.wait().stdout)
    assert seen["lost"] == seen["wrong"] == 0, seen
    assert seen["problem"] is None, seen
    assert rig.probe("hostb", "c1")["intact"]


@pytest.mark.nightly  # test_migrate.py has four
def test_two_containers_move_at_the_same_time(rig: Rig, clean_hosts: CleanHosts) -> None:
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "memory", size=64)
    rig.guest("hostb", "c2", "tick")
    failures: list[BaseException] = []

    def go(name: str, source: str) -> None:
        try:
            move(rig, name, source)
        except BaseException as error:  # shown by the assertion below
            failures.append(error)

    threads = [threading.Thread(target=go, args=pair) for pair in (("c1", "hosta"), ("c2", "hostb"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    assert rig.probe("hostb", "c1")["intact"]
    assert rig.probe("hosta", "c2")["intact"]


def test_lxc_owns_the_restored_container(rig: Rig, clean_hosts: CleanHosts) -> None:
    """lxc-info, lxc-attach, lxc-freeze and lxc-stop work, and the limits are those of the configuration."""
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "tick", config=["lxc.cgroup2.cgroup.max.depth = 7"])
    move(rig, "c1", "hosta")
    assert rig.sh("hostb", "lxc-info -n c1 -sH").strip() == "RUNNING"
    assert rig.sh("hostb", "lxc-attach -n c1 -- /bin/sh -c 'echo in $(hostname)'").strip() == "in c1"
    cgroup = rig.sh("hostb", "sed -n 's/^0:://p' /proc/$(lxc-info -n c1 -pH)/cgroup").strip()
    assert rig.read("hostb", f"/sys/fs/cgroup{cgroup}/cgroup.max.depth").strip() == "7"
    rig.exec("hostb", "lxc-freeze", "-n", "c1")
    assert rig.sh("hostb", "lxc-info -n c1 -sH").strip() == "FROZEN"
    rig.exec("hostb", "lxc-unfreeze", "-n", "c1")
    assert rig.probe("hostb", "c1")["intact"]
    rig.exec("hostb", "lxc-stop", "-k", "-n", "c1")
    assert rig.sh("hostb", "lxc-info -n c1 -sH").strip() == "STOPPED"
    rig.exec("hostb", "lxc-start", "-n", "c1")  # it is this host's now, so it starts


def test_the_copy_left_behind_is_fenced(rig: Rig, clean_hosts: CleanHosts) -> None:
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "tick", config=["lxc.start.auto = 1"])
    move(rig, "c1", "hosta")
    assert "migrated to hostb" in rig.sh("hosta", "lxc-start -F -n c1 2>&1 | cat")  # a pipe, as a terminal, only grows
    assert rig.sh("hosta", "lxc-info -n c1 -sH").strip() == "STOPPED"
    assert rig.sh("hosta", "lxc-autostart --list").strip() == "", "it would start at boot"
    assert "c1" in rig.sh("hostb", "grep -c 'start.auto = 1' /pool/c1/config && echo c1")
    move(rig, "c1", "hostb")
    assert "migrator fence" not in rig.read("hosta", "/pool/c1/config")


def test_not_startable_on_the_destination_before_it_is_handed_over(rig: Rig, clean_hosts: CleanHosts) -> None:
    rig.guest("hosta", "c1", "tick")
    prepare(rig, "c1", "hosta")
    assert "being moved here from hosta" in rig.sh("hostb", "lxc-start -F -n c1 2>&1 | cat")
    assert rig.sh("hostb", "lxc-info -n c1 -sH").strip() == "STOPPED"
    rig.migrator("hosta", "rollback", "c1").expect(0)
    assert rig.sh("hostb", "lxc-ls").strip() == ""
    clean_hosts.allow()


def test_stages_out_of_order_say_what_comes_next(rig: Rig, clean_hosts: CleanHosts) -> None:
    rig.guest("hosta", "c1", "tick")
    for host, stage in (("hosta", "create-dump"), ("hosta", "finish"), ("hosta", "rollback"), ("hostb", "import-data"),
                        ("hostb", "restore-dump")):
        destination = ["-d", "root@hostb"] if stage == "create-dump" else []
        error = rig.migrator(host, stage, "c1", *destination, "--json").expect(26).error
        assert "migrator prepare-data c1" in error["cure"], error
    rig.migrator("hosta", "prepare-data", "c1", "-d", "root@hostb").expect(0)
    error = rig.migrator("hosta", "create-dump", "c1", "-d", "root@hostb", "--json").expect(27).error
    assert "not been imported" in error["message"]
    assert "migrator import-data c1 -P /pool   (on hostb)" in error["cure"]
    error = rig.migrator("hostb", "restore-dump", "c1", "--json").expect(27).error
    assert "migrator import-data" in error["cure"] or "migrator create-dump" in error["cure"], error
    rig.migrator("hostb", "import-data", "c1").expect(0)
    error = rig.migrator("hosta", "finish", "c1", "--json").expect(27).error
    assert "create-dump" in error["cure"] or "import-data" in error["cure"], error
    assert rig.probe("hosta", "c1")["intact"]
    rig.migrator("hosta", "rollback", "c1").expect(0)
    clean_hosts.allow()


def test_a_repeated_stage_does_nothing_and_says_so(rig: Rig, clean_hosts: CleanHosts) -> None:
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "tick")
    there = ("-d", "root@hostb", "--json")

    def again(host: str, *arguments: str) -> None:
        assert rig.migrator(host, *arguments).expect(0).json["already"] is True

    for host, arguments in (("hosta", ("prepare-data", "c1", *there)), ("hostb", ("import-data", "c1", "--json")),
                            ("hosta", ("create-dump", "c1", *there)), ("hostb", ("restore-dump", "c1", "--json")),
                            ("hosta", ("finish", "c1", "--json"))):
        assert rig.migrator(host, *arguments).expect(0).json["already"] is False
        again(host, *arguments)
    again("hostb", "restore-dump", "c1", "--json")
    assert rig.probe("hostb", "c1")["intact"]


@pytest.mark.nightly  # as test_bases.py and test_migrate.py have it
def test_more_rounds_send_only_what_changed(rig: Rig, clean_hosts: CleanHosts) -> None:
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "tick")
    full = prepare(rig, "c1", "hosta")
    rig.exec("hosta", "dd", "if=/dev/urandom", "of=/pool/c1/rootfs/blob", "bs=1M", "count=3", "status=none")
    second = prepare(rig, "c1", "hosta")
    third = prepare(rig, "c1", "hosta")
    assert 3 << 20 <= second < (3 << 20) + (full if full < 1 << 20 else 1 << 20)
    assert third < 1 << 20
    rig.migrator("hosta", "create-dump", "c1", "-d", "root@hostb").expect(0)
    rig.migrator("hostb", "restore-dump", "c1").expect(0)
    rig.migrator("hosta", "finish", "c1").expect(0)
    assert rig.sh("hostb", "sha256sum </pool/c1/rootfs/blob") == rig.sh("hosta", "sha256sum </pool/c1/rootfs/blob")
    assert rig.probe("hostb", "c1")["intact"]


def test_a_changed_configuration_must_be_sent_again(rig: Rig, clean_hosts: CleanHosts) -> None:
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "tick")
    prepare(rig, "c1", "hosta")
    rig.sh("hosta", "echo 'lxc.cgroup2.cgroup.max.depth = 9' >>/pool/c1/config")
    error = rig.migrator("hosta", "create-dump", "c1", "-d", "root@hostb", "--json").expect(28).error
    assert "migrator prepare-data c1 -d root@hostb" in error["cure"]
    assert rig.probe("hosta", "c1")["intact"]
    prepare(rig, "c1", "hosta")
    rig.migrator("hosta", "create-dump", "c1", "-d", "root@hostb").expect(0)
    rig.migrator("hostb", "restore-dump", "c1").expect(0)
    rig.migrator("hosta", "finish", "c1").expect(0)
    assert "max.depth = 9" in rig.read("hostb", "/pool/c1/config")


def test_bridges_are_mapped_and_includes_travel_along(rig: Rig, clean_hosts: CleanHosts) -> None:
    clean_hosts.allow("snapshot")
    rig.put("hosta", "/etc/lxc/only-here.conf", "lxc.cgroup2.cgroup.max.depth = 5\n")
    rig.sh("hosta", "ip link add bra up type bridge && ip link add to-bra up master lxcbr0 type veth peer name from-bra"
                    " && ip link set from-bra up master bra")
    try:
        rig.guest("hosta", "c1", "tick", ip="10.0.3.110",
                  config=["lxc.net.0.link = bra", "lxc.include = /etc/lxc/only-here.conf"])
        blocked = rig.migrator("hosta", "prepare-data", "c1", "-d", "root@hostb", "--json").expect(30).error
        assert "bridge-missing" in blocked["message"], blocked
        rig.migrator("hosta", "prepare-data", "c1", "-d", "root@hostb", "--map-bridge", "bra=lxcbr0").expect(0)
        rig.migrator("hostb", "import-data", "c1").expect(0)
        rig.migrator("hosta", "create-dump", "c1", "-d", "root@hostb").expect(0)
        rig.migrator("hostb", "restore-dump", "c1").expect(0)
        rig.migrator("hosta", "finish", "c1").expect(0)
        assert "only-here.conf" in rig.sh("hostb", "ls /pool/c1/migrator-include/*")
        assert rig.probe("hostb", "c1")["intact"]
        rig.reaches("client", "10.0.3.110")
    finally:
        rig.exec("hosta", "ip", "link", "delete", "to-bra")
        rig.exec("hosta", "ip", "link", "delete", "bra")
        rig.exec("hosta", "rm", "-f", "/etc/lxc/only-here.conf")


def test_dry_run_prints_commands_and_changes_nothing(rig: Rig, clean_hosts: CleanHosts) -> None:
    rig.guest("hosta", "c1", "tick")
    before = rig.leftovers()
    plan = rig.migrator("hosta", "prepare-data", "c1", "-d", "root@hostb", "--dry-run").expect(0).stdout
    assert "hosta# btrfs send" in plan
    assert "hostb#" in plan
    assert rig.leftovers() == before
    rig.migrator("hosta", "status", "c1").expect(26)
    prepare(rig, "c1", "hosta")
    before = rig.leftovers()
    plan = rig.migrator("hosta", "create-dump", "c1", "-d", "root@hostb", "--dry-run").expect(0).stdout
    assert "hosta# criu dump" in plan
    assert "hosta# btrfs send -q -p" in plan
    assert rig.leftovers() == before
    assert rig.probe("hosta", "c1")["intact"]
    rig.migrator("hosta", "rollback", "c1").expect(0)


def test_status_tells_where_it_stands(rig: Rig, clean_hosts: CleanHosts) -> None:
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "tick")
    rig.migrator("hosta", "prepare-data", "c1", "-d", "root@hostb").expect(0)
    here, there = rig.status("hosta", "c1"), rig.status("hostb", "c1")
    assert (here["state"], there["state"]) == ("prepared", "received")
    assert here["owner"] == there["owner"] == "source"
    assert here["next"] == "migrator import-data c1 -P /pool   (on hostb)"
    assert there["next"] == "migrator import-data c1"
    assert there["bytes"]["spool"] >= here["bytes"]["full"] > 0
    rig.migrator("hostb", "import-data", "c1").expect(0)
    rig.migrator("hosta", "create-dump", "c1", "-d", "root@hostb").expect(0)
    here, there = rig.status("hosta", "c1"), rig.status("hostb", "c1")
    assert here["owner"] == there["owner"] == "destination"
    assert there["next"] == "migrator restore-dump c1"
    rig.migrator("hostb", "restore-dump", "c1").expect(0)
    assert rig.status("hostb", "c1")["next"] == "migrator finish c1 -P /pool   (on hosta)"
    rig.migrator("hosta", "finish", "c1").expect(0)
    assert rig.status("hosta", "c1")["state"] == rig.status("hostb", "c1")["state"] == "finished"


@pytest.mark.parametrize("keep", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_cleanup_removes_the_copy_and_the_snapshots(rig: Rig, clean_hosts: CleanHosts, keep: bool) -> None:
    rig.guest("hosta", "c1", "tick")
    move(rig, "c1", "hosta")
    shown = rig.migrator("hosta", "cleanup", "c1", "--dry-run", "--json").expect(0).json["removed"]
    assert shown
    assert rig.sh("hosta", "ls /pool").strip() == "c1"
    rig.migrator("hosta", "cleanup", "c1", *(["--keep-copy"] if keep else [])).expect(0)
    rig.migrator("hostb", "cleanup", "c1").expect(0)
    assert rig.sh("hosta", "ls /pool").strip() == ("c1" if keep else "")
    assert rig.leftovers() == []
    assert rig.probe("hostb", "c1")["intact"], "the one that runs was touched"


@pytest.mark.nightly  # the fault matrix rolls back from every state
def test_rollback_from_every_stage(rig: Rig, clean_hosts: CleanHosts) -> None:
    """Whatever has been done, the source runs on, and nothing of the attempt is left on either host."""
    rig.guest("hosta", "c1", "tick", ip="10.0.3.111")
    start = rig.probe("hosta", "c1")["start"]
    stages = [("hosta", "prepare-data", "-d", "root@hostb"), ("hostb", "import-data"),
              ("hosta", "create-dump", "-d", "root@hostb")]
    for count in range(1, len(stages) + 1):
        for host, stage, *rest in stages[:count]:
            rig.migrator(host, stage, "c1", *rest).expect(0)
        rig.migrator("hosta", "rollback", "c1").expect(0)
        found = rig.probe("hosta", "c1")
        assert found["running"] and found["intact"] and found["start"] == start, found
        rig.reaches("client", "10.0.3.111")
        assert rig.leftovers() == []
        assert rig.sh("hostb", "ls /pool").strip() == ""
    for host, stage, *rest in [*stages, ("hostb", "restore-dump")]:
        rig.migrator(host, stage, "c1", *rest).expect(0)
    error = rig.migrator("hosta", "rollback", "c1", "--json").expect(29).error
    assert "migrator finish c1" in error["cure"]
    rig.migrator("hosta", "finish", "c1").expect(0)
    assert rig.probe("hostb", "c1")["intact"]
    clean_hosts.allow("snapshot")


@pytest.mark.nightly  # test_strangers.py has a restore that fails there
def test_rollback_of_a_way_back_leaves_the_earlier_stay_as_it_was(rig: Rig, clean_hosts: CleanHosts) -> None:
    """A has the fenced copy of a container that is on B; its way back to A is given up."""
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "tick")
    move(rig, "c1", "hosta")
    look = "cd /pool/c1 && ls && cat config migrator-fence && btrfs subvolume show rootfs | grep '^[[:space:]]UUID:'"
    before = rig.sh("hosta", look)
    prepare(rig, "c1", "hostb")
    rig.migrator("hostb", "create-dump", "c1", "-d", "root@hosta").expect(0)
    rig.migrator("hostb", "rollback", "c1").expect(0)
    assert rig.sh("hosta", look) == before
    assert "was migrated to hostb" in rig.sh("hosta", "lxc-start -F -n c1 2>&1 | cat")
    assert rig.probe("hostb", "c1")["intact"]
    assert move(rig, "c1", "hostb") < 1 << 20, "the base that both hosts have was lost"
    assert rig.probe("hosta", "c1")["intact"]


def test_rollback_on_the_destination(rig: Rig, clean_hosts: CleanHosts) -> None:
    """The destination can give an attempt up by itself; the source then learns it from its own rollback."""
    rig.guest("hosta", "c1", "tick")
    prepare(rig, "c1", "hosta")
    rig.migrator("hosta", "create-dump", "c1", "-d", "root@hostb").expect(0)
    said = rig.migrator("hostb", "rollback", "c1", "--json").expect(0).json
    assert said["next"] == "migrator rollback c1 -P /pool   (on hosta)"
    rig.migrator("hostb", "restore-dump", "c1").expect(27)
    assert rig.sh("hostb", "ls /pool").strip() == ""
    rig.migrator("hosta", "rollback", "c1").expect(0)
    assert rig.probe("hosta", "c1")["intact"]


def test_rollback_after_the_source_has_lost_its_memory(rig: Rig, clean_hosts: CleanHosts) -> None:
    """What a reboot of the source does: the frozen processes are gone; rollback says so and starts it from its disk."""
    rig.guest("hosta", "c1", "tick")
    prepare(rig, "c1", "hosta")
    rig.migrator("hosta", "create-dump", "c1", "-d", "root@hostb").expect(0)
    rig.sh("hosta", "echo 1 >/sys/fs/cgroup/lxc.payload.c1/cgroup.kill; lxc-wait -n c1 -s STOPPED -t 200")
    start = rig.probe("hosta", "c1").get("start")
    done = rig.migrator("hosta", "rollback", "c1").expect(0)
    assert "starting it from its disk" in done.stderr and "keeps running here" in done.stdout
    wait_for(lambda: rig.probe("hosta", "c1").get("start") not in (None, start), "it counts again")
