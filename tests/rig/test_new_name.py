# SPDX-License-Identifier: GPL-2.0-or-later
"""Moves under a new name between two real hosts: there, back home, stage by stage, and what gives such a move up."""

from __future__ import annotations

import shlex

import pytest

from harness.rig import DESTINATION, Rig, wait_for
from tests.rig.clean_hosts import CleanHosts
from tests.rig.held import RESTORE, held
from tests.rig.moves import ALL_AT_ONCE, migrate, other
from tests.rig.outcomes import failed

LIMIT = "cgroup.max.descendants"  # every cgroup of version 2 has it, whatever controllers there are


def lives(rig: Rig, host: str, name: str, start: str) -> None:
    """It runs there under that name, in cgroups of that name, with its limit, and nowhere else."""
    found = rig.probe(host, name)
    assert found["running"] and found["intact"] and found["start"] == start, found
    pid = rig.sh(host, f"lxc-info -n {name} -pH").strip()
    assert rig.sh(host, f"grep ^0: /proc/{pid}/cgroup").strip().endswith(f"/lxc.payload.{name}")
    assert rig.sh(host, f"cat /sys/fs/cgroup/lxc.payload.{name}/{LIMIT}").strip() == "7"
    assert cgroups(rig, host) == [f"lxc.monitor.{name}", f"lxc.payload.{name}"]
    wait_for(lambda: not cgroups(rig, other(host)), "LXC's monitor of the copy that was ended has ended too")


def cgroups(rig: Rig, host: str) -> list[str]:
    return rig.sh(host, "cd /sys/fs/cgroup; ls -d lxc.monitor.* lxc.payload.* 2>/dev/null", check=False).split()


def hop(rig: Rig, source: str, old: str, new: str) -> bool:
    """Whether the whole disk had to be sent."""
    options = ["--new-name", new] if new != old else []
    done = migrate(rig, old, source, *options).expect(0).json
    assert done["new_name"] == new
    assert rig.status(source, old)["peer_name"] == new and rig.status(other(source), new)["peer_name"] == old
    return bool(done["rounds"][0]["full"])


def type_(rig: Rig, command: str, here: str) -> str:
    """Run a command that migrator has advised, where it says; returns what it advises next."""
    words, _, place = command.partition("   (on ")
    host = place.rstrip(")") or here
    outcome = rig.exec(host, *shlex.split(words), "--json", check=False)
    next_ = str(outcome.expect(0).json.get("next", ""))
    return next_ if "(on " in next_ or not next_ else f"{next_}   (on {host})"


def test_there_and_home_again(rig: Rig, clean_hosts: CleanHosts) -> None:
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "tick", config=[f"lxc.cgroup2.{LIMIT} = 7"])
    start = rig.probe("hosta", "c1")["start"]

    assert hop(rig, "hosta", "c1", "c2")
    lives(rig, "hostb", "c2", start)
    assert rig.sh("hostb", "cd /pool; ls; ls .migrator").split() == ["c2", "c2"]
    config = rig.read("hostb", "/pool/c2/config").splitlines()
    assert [line for line in config if "uts.name" in line] == ["lxc.uts.name = c2"]
    assert [line.rpartition(" ")[2] for line in config if "rootfs.path" in line] == ["btrfs:/pool/c2/rootfs"]
    assert rig.sh("hostb", "nsenter -u -t $(lxc-info -n c2 -pH) hostname").strip() == "c1", "until it is started anew"
    assert rig.exec("hosta", "lxc-start", "-n", "c1", check=False).status
    assert "c1 was migrated to hostb as c2" in rig.read("hosta", "/pool/c1/migrator-fence")

    assert not hop(rig, "hostb", "c2", "c1"), "at home its earlier disk is there still"
    lives(rig, "hosta", "c1", start)

    # On hostb c2 is this container's own copy, but it must not give way to another container.
    rig.guest("hosta", "d1", "tick")
    failed(migrate(rig, "d1", "hosta", "--new-name", "c2"), 30, "blocked")
    failed(migrate(rig, "d1", "hosta", "--new-name", "c2", "--ignore", "name-taken"), 23, "container-exists")
    failed(migrate(rig, "d1", "hosta", "--new-name", "../c2"), 20, "invalid-name")
    rig.sh("hosta", "lxc-stop -k -n d1")

    assert not hop(rig, "hosta", "c1", "c2")
    lives(rig, "hostb", "c2", start)
    assert rig.leftovers() and all(": snapshot: " in line for line in rig.leftovers())


@pytest.mark.nightly  # test_there_and_home_again has the name on both ways
def test_by_hand_and_given_up(rig: Rig, clean_hosts: CleanHosts) -> None:
    """Each command that is advised has the name that the container has on the host where it is to be typed."""
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "tick", config=[f"lxc.cgroup2.{LIMIT} = 7"])
    start = rig.probe("hosta", "c1")["start"]
    begin = f"migrator prepare-data c1 -d {DESTINATION} --new-name c2"

    next_ = type_(rig, begin, "hosta")
    while "restore-dump" not in next_:
        next_ = type_(rig, next_, "hosta")
    assert next_ == "migrator restore-dump c2 -P /pool   (on hostb)"
    assert rig.status("hosta", "c1")["next"] == next_
    assert type_(rig, "migrator rollback c2", "hostb") == "migrator rollback c1 -P /pool   (on hosta)"
    type_(rig, "migrator rollback c1", "hosta")
    lives(rig, "hosta", "c1", start)
    assert rig.leftovers() == [] and rig.sh("hostb", "ls /pool").strip() == ""

    next_ = begin
    while next_:
        next_ = type_(rig, next_, "hosta")
    lives(rig, "hostb", "c2", start)


@pytest.mark.nightly
def test_killed_and_resumed(rig: Rig, clean_hosts: CleanHosts) -> None:
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "tick", config=[f"lxc.cgroup2.{LIMIT} = 7"])
    start = rig.probe("hosta", "c1")["start"]
    with held(rig, "hostb", "criu", RESTORE) as criu, rig.start("hosta", *ALL_AT_ONCE, "--new-name", "c2") as running:
        criu.wait("CRIU has begun")
        running.signal(9)
        rig.kill_serve()
        running.wait()
        for host, name in (("hosta", "c1"), ("hostb", "c2")):
            assert rig.status(host, name)["next"] == f"migrator resume {name}"
    wait_for(lambda: rig.migrator("hostb", "resume", "c2").status == 0, "it has healed")
    assert rig.status("hosta", "c1")["state"] == "finished", "the source was told, by its container's name there"
    lives(rig, "hostb", "c2", start)
