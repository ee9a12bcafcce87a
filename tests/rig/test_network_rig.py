# SPDX-License-Identifier: GPL-2.0-or-later
"""The container's place in the network: nobody answers while it is frozen, and the new place is announced."""

from __future__ import annotations

import re

from harness.rig import DESTINATION, Rig, Running, wait_for
from tests.rig.clean_hosts import CleanHosts

ADDRESS, ADDRESS6 = "10.0.3.100", "fd00:3::100"


def test_silent_while_frozen_and_announced_when_restored(rig: Rig, clean_hosts: CleanHosts) -> None:
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "talk", ip=ADDRESS)
    mac = rig.sh("hosta", "sed -n 's/^lxc.net.0.hwaddr = //p' /pool/c1/config").strip()
    rig.reaches("client", ADDRESS)
    rig.migrator("hosta", "prepare-data", "c1", "-d", DESTINATION).expect(0)
    rig.migrator("hostb", "import-data", "c1").expect(0)
    rig.migrator("hosta", "create-dump", "c1", "-d", DESTINATION).expect(0)
    # Data that the frozen copy's kernel acknowledged would be lost: it must not answer anything.
    assert rig.exec("client", "ping", "-c", "2", "-i", "0.3", "-W", "1", ADDRESS, check=False).status == 1
    rig.sh("hosta", "nft flush ruleset")  # as Debian's /etc/nftables.conf does: `systemctl reload nftables`
    assert "Its network is no longer silenced" in str(rig.status("hosta", "c1")["note"])
    rig.migrator("hosta", "create-dump", "c1", "-d", DESTINATION).expect(0)
    assert rig.exec("client", "ping", "-c", "1", "-W", "1", ADDRESS, check=False).status == 1
    assert "silent" not in str(rig.status("hosta", "c1")["note"])
    with rig.start("client", "tcpdump", "-l", "-n", "-e", "-i", "eth0", "arp or icmp6") as capture:
        wait_for(lambda: "listening" in capture.stderr, "tcpdump listens")
        rig.migrator("hostb", "restore-dump", "c1").expect(0)
        seen = {
            "ARP": rf"{mac} > ff:ff:ff:ff:ff:ff.*ARP.*Request who-has {ADDRESS}.* tell {ADDRESS}",
            "NDP": rf"{mac} > 33:33:00:00:00:01.*neighbor advertisement, tgt is {ADDRESS6}",
        }
        for protocol, line in seen.items():
            wait_for(lambda line=line: len(re.findall(line, capture.stdout)) >= 3,  # type: ignore[misc]
                     f"{protocol} announces it, repeatedly")
    rig.reaches("client", ADDRESS)
    rig.reaches("client", ADDRESS6)
    rig.migrator("hosta", "finish", "c1").expect(0)
    # No reset from the copy's end, no second answer.
    answers = rig.sh("client", f"arping -b -c 3 -w 200 -I eth0 {ADDRESS} || true")
    assert len(set(re.findall(r"([0-9A-Fa-f:]{17})", answers))) == 1, answers
    assert rig.probe("hostb", "c1")["intact"]


def test_a_rollback_brings_the_network_back(rig: Rig, clean_hosts: CleanHosts) -> None:
    """With all that the port had on its bridge."""
    rig.guest("hosta", "c1", "tick", ip="10.0.3.130", config=["lxc.net.0.veth.pair = _c1"])
    rig.sh("hosta", "bridge link set dev _c1 hairpin on isolated on")
    shown = "bridge -d link show dev _c1"
    before = rig.sh("hosta", shown)
    with rig.start("hosta", "ip", "-o", "monitor", "link") as events:
        seen(rig, events, "begin")
        moved_there_and_back(rig)
        seen(rig, events, "end")
        own = [line for line in events.stdout.splitlines() if "_c1@" in line]
    # Off its bridge for a moment it would have lost its VLANs, which not every kernel has.
    assert not [line for line in own if "master lxcbr0" not in line or line.startswith("Deleted")], own
    assert rig.sh("hosta", shown) == before
    rig.reaches("client", "10.0.3.130")
    assert rig.probe("hosta", "c1")["intact"]


def seen(rig: Rig, events: Running, name: str) -> None:
    """All that happened before has been told."""
    def told() -> bool:
        rig.sh("hosta", f"ip link add name _{name} type bridge; ip link delete dev _{name}")
        return f"_{name}:" in events.stdout

    wait_for(told, f"the {name} is told")


def moved_there_and_back(rig: Rig) -> None:
    rig.migrator("hosta", "prepare-data", "c1", "-d", DESTINATION).expect(0)
    rig.migrator("hostb", "import-data", "c1").expect(0)
    rig.migrator("hosta", "create-dump", "c1", "-d", DESTINATION).expect(0)
    assert "netdev migrator-" in rig.sh("hosta", "nft list tables")
    assert rig.exec("client", "ping", "-c", "1", "-W", "1", "10.0.3.130", check=False).status == 1
    rig.migrator("hosta", "rollback", "c1").expect(0)


def test_an_interface_may_be_called_what_the_kernel_allows(rig: Rig, clean_hosts: CleanHosts) -> None:
    """By root of the container, and nobody knows before it is frozen."""
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "tick", ip="10.0.3.133")
    rig.sh("hosta", """nsenter -t $(lxc-info -n c1 -pH) -n ip link add name 'x"y' type bridge""")
    begun = rig.probe("hosta", "c1")["start"]
    rig.migrator("hosta", "migrate", "c1", "-d", DESTINATION).expect(0)
    found = rig.probe("hostb", "c1")
    assert found["intact"] and found["start"] == begun
    setting = "'/proc/sys/net/ipv6/conf/x\"y/accept_dad'"
    assert rig.sh("hostb", f"nsenter -t $(lxc-info -n c1 -pH) -n cat {setting}") == "1\n"


def test_a_port_that_could_not_be_silenced_is_found_before_the_freeze(rig: Rig, clean_hosts: CleanHosts) -> None:
    rig.guest("hosta", "c1", "tick", ip="10.0.3.138", config=["lxc.net.0.veth.pair = _*"])
    rig.migrator("hosta", "prepare-data", "c1", "-d", DESTINATION).expect(0)
    rig.migrator("hostb", "import-data", "c1").expect(0)
    outcome = rig.migrator("hosta", "create-dump", "c1", "-d", DESTINATION, "--json")
    assert outcome.error["code"] == "invalid-name", outcome
    assert not [each for each in rig.status("hosta", "c1")["events"] if each["step"] == "freeze"]
    assert rig.probe("hosta", "c1")["intact"]
    rig.migrator("hosta", "rollback", "c1").expect(0)
