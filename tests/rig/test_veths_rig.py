# SPDX-License-Identifier: GPL-2.0-or-later
"""What LXC does on a host with a container's veth at a start: at a restore it is done too, and kept on the source."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from harness.rig import LXC_HOSTS, Rig
from tests.rig.clean_hosts import CleanHosts
from tests.rig.held import instead_of
from tests.rig.moves import TO_B
from tests.rig.outcomes import RUNS_AGAIN, failed

NET = "192.0.2.0/24"
TAKEN = "198.51.100.0/24"  # hostb has a route of its own to it
UP = '#!/bin/sh\necho "$* $(readlink /sys/class/net/$6/master)" >>/run/up.told\n'


def route(rig: Rig, host: str) -> list[str]:
    """The device that a host's route to what lies behind the container leads to."""
    words = rig.sh(host, f"ip route show {NET}").split()
    return words[words.index("dev") + 1:][:1] if words else []


def test_routes(rig: Rig, clean_hosts: CleanHosts) -> None:
    clean_hosts.allow("snapshot")
    rig.sh("hostb", f"ip route add {TAKEN} dev lxcbr0 proto static")
    rig.guest("hosta", "c1", "tick", ip="10.0.3.134",
              config=[f"lxc.net.0.veth.ipv4.route = {net}" for net in (TAKEN, NET)])
    begun, before = rig.probe("hosta", "c1")["start"], route(rig, "hosta")
    assert before
    rig.migrator("hosta", "prepare-data", "c1", *TO_B).expect(0)
    rig.migrator("hostb", "import-data", "c1").expect(0)
    rig.migrator("hosta", "create-dump", "c1", *TO_B).expect(0)
    rig.migrator("hosta", "rollback", "c1").expect(0)
    assert (route(rig, "hosta"), route(rig, "hostb")) == (before, [])
    rig.migrator("hosta", "migrate", "c1", *TO_B).expect(0)
    (there,) = route(rig, "hostb")
    assert rig.sh("hostb", f"readlink /sys/class/net/{there}/master").strip().endswith("/lxcbr0")
    assert rig.sh("hostb", f"ip route show {TAKEN}").split()[1:3] == ["dev", "lxcbr0"]
    rig.sh("hostb", f"ip route delete {TAKEN} dev lxcbr0")
    assert route(rig, "hosta") == []
    found = rig.probe("hostb", "c1")
    assert found["intact"] and found["start"] == begun


def test_a_veth_that_criu_makes_itself(rig: Rig, clean_hosts: CleanHosts) -> None:
    """As on kernels before 5.13; here by a name that CRIU's configuration file does not take."""
    clean_hosts.allow("snapshot")
    for host in LXC_HOSTS:
        rig.put(host, "/run/up", UP)
        rig.sh(host, "chmod 700 /run/up; rm -f /run/up.told")
    rig.guest("hosta", "c1", "tick", ip="10.0.3.135", config=[
        "lxc.net.0.name = _lan", f"lxc.net.0.veth.ipv4.route = {NET}", "lxc.net.0.script.up = /bin/sh /run/up"])
    begun = rig.probe("hosta", "c1")["start"]
    rig.migrator("hosta", "migrate", "c1", *TO_B).expect(0)
    found = rig.probe("hostb", "c1")
    assert found["intact"] and found["start"] == begun
    rig.reaches("client", "10.0.3.135")
    (there,) = route(rig, "hostb")
    *words, bridge = rig.read("hostb", "/run/up.told").split()
    assert words == ["c1", "net", "up", "veth", "lxcbr0", there]
    assert bridge.endswith("/lxcbr0")


@contextlib.contextmanager
def vlans(rig: Rig, says: str) -> Iterator[None]:
    """hostb's bridge tells VLANs apart, and bridge(8) is a script: not every kernel is made with VLANs of bridges."""
    place = rig.sh("hostb", "echo $(readlink -f /sys/class/net/lxcbr0)/bridge").strip()
    rig.sh("hostb", f"rm -rf /run/vlans /run/vlans.told; mkdir /run/vlans; cd /run/vlans; echo 1 >vlan_filtering;"
                    f" echo 1 >default_pvid; mount --bind /run/vlans {place}")
    script = f"""#!/bin/sh
echo "$* on $(basename $(readlink /sys/class/net/$4/master))" >>/run/vlans.told
{says}
"""
    try:
        with instead_of(rig, "hostb", "bridge", script):
            yield
    finally:
        rig.sh("hostb", f"umount {place}")


def test_vlans(rig: Rig, clean_hosts: CleanHosts) -> None:
    """Those of its port are set when it is on its bridge; where they cannot be the source goes on."""
    clean_hosts.allow("snapshot")
    rig.guest("hosta", "c1", "tick", ip="10.0.3.136", config=["lxc.net.0.veth.pair = _c1"])
    lines = "lxc.net.0.veth.vlan.id = 7\nlxc.net.0.veth.vlan.tagged.id = 8\nlxc.net.0.veth.vlan.tagged.id = 9\n"
    rig.put("hosta", "/pool/c1/config", rig.read("hosta", "/pool/c1/config") + lines)  # this bridge has none
    begun = rig.probe("hosta", "c1")["start"]
    move = ("migrate", "c1", *TO_B, "--json", "--ignore", "bridge-without-vlans")
    with vlans(rig, "echo 'no such VLAN' >&2; exit 1"):
        error = failed(rig.migrator("hosta", *move), RUNS_AGAIN, "restore-failed")
    assert "bridge vlan del dev _c1 vid 1: no such VLAN" in str(error["message"])
    found = rig.probe("hosta", "c1")
    assert found["intact"] and found["start"] == begun
    with vlans(rig, "exit 0"):
        rig.migrator("hosta", *move).expect(0)
    assert rig.read("hostb", "/run/vlans.told").splitlines() == [f"vlan {words} on lxcbr0" for words in (
        "del dev _c1 vid 1", "add dev _c1 vid 7 pvid untagged", "add dev _c1 vid 8", "add dev _c1 vid 9")]
    found = rig.probe("hostb", "c1")
    assert found["intact"] and found["start"] == begun


def test_devices_by_their_path(rig: Rig, clean_hosts: CleanHosts) -> None:
    """What the destination lacks is found before anything is sent."""
    clean_hosts.allow("snapshot")
    for host in LXC_HOSTS:
        rig.sh(host, "rm -f /run/gadget; mknod /run/gadget c 1 5")
    rig.guest("hosta", "c1", "tick", config=["lxc.cgroup2.devices.deny = a", "lxc.cgroup2.devices.allow = c *:* rwm",
                                             "lxc.cgroup2.devices.allow = /run/gadget rw"])
    rig.sh("hostb", "rm /run/gadget")
    found = rig.migrator("hosta", "check", "c1", *TO_B, "--json").expect(30).json["findings"]
    assert [each["message"] for each in found if each["code"] == "device-missing"] == [
        "hostb has no device /run/gadget (lxc.cgroup2.devices.allow)."]
    rig.migrator("hosta", "migrate", "c1", *TO_B).expect(30)
    rig.sh("hostb", "mknod /run/gadget c 1 5")
    rig.migrator("hosta", "migrate", "c1", *TO_B).expect(0)
    assert rig.probe("hostb", "c1")["intact"]
