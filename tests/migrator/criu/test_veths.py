# SPDX-License-Identifier: GPL-2.0-or-later
"""Which veths are made before a container is restored, and how."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

import pytest

from migrator.base.run import Completed
from migrator.config import lxc_settings
from migrator.criu import criu_dump, veths
from migrator.criu.veths import Veth
from migrator.errors.containers import InvalidName
from migrator.errors.this_host import CommandFailed

CONFIG = """
lxc.net.0.type = veth
lxc.net.0.link = lxcbr0
lxc.net.1.type = empty
lxc.net.2.type = veth
lxc.net.2.name = lan
lxc.net.2.veth.pair = c1-lan
lxc.net.2.mtu = 9000
lxc.net.2.veth.ipv4.route = 192.0.2.0/24
lxc.net.2.veth.ipv6.route = 2001:db8::/64
lxc.net.4.type = veth
lxc.net.4.link = br1
lxc.net.5.type = macvlan
lxc.net.5.link = eth0
"""


def test_each_veth_of_the_configuration() -> None:
    found = veths.planned(lxc_settings.parse(CONFIG).nets, "0badc0de", beforehand=True)
    assert found == [
        Veth(0, "eth0", "mg0badc0de-0", "veth0badc0de0", "lxcbr0", 0),
        Veth(2, "lan", "mg0badc0de-2", "c1-lan", "", 9000, ("192.0.2.0/24", "2001:db8::/64")),
        Veth(4, "eth3", "mg0badc0de-4", "veth0badc0de4", "br1", 0),  # LXC counts the sections, whatever their numbers
    ]


def test_names_fit() -> None:
    (veth,) = veths.planned(lxc_settings.parse("lxc.net.999.type = veth\n").nets, "0badc0de", beforehand=True)
    assert len(veth.made) <= 15 and len(veth.outside) <= 15


@pytest.mark.parametrize("name", ["a#b", "a b", "_br0", "ä"])
def test_names_that_cannot_be_told_to_criu(name: str) -> None:
    """CRIU makes these itself; the host's end has the name that LXC tells it, so that the rest can be done with it."""
    text = f"lxc.net.0.type = veth\nlxc.net.0.name = {name}\nlxc.net.0.veth.pair = _out\n"
    found = veths.planned(lxc_settings.parse(text).nets, "0badc0de", beforehand=True)
    assert found == [Veth(0, name, "", "_out", "", 0)]


def test_the_name_of_the_host_s_end_is_no_obstacle() -> None:
    text = "lxc.net.0.type = veth\nlxc.net.0.veth.pair = _out\n"
    (veth,) = veths.planned(lxc_settings.parse(text).nets, "0badc0de", beforehand=True)
    assert veth.made and veth.outside == "_out"


def test_where_none_can_be_made_beforehand_nothing_else_differs() -> None:
    nets = lxc_settings.parse(CONFIG).nets
    found, other = (veths.planned(nets, "0badc0de", beforehand=each) for each in (True, False))
    assert [dataclasses.replace(veth, made="") for veth in found] == other


def test_what_criu_is_told() -> None:
    (first, *_) = veths.planned(lxc_settings.parse(CONFIG).nets, "0badc0de", beforehand=True)
    assert criu_dump.restore_config([first.external]) == "ghost-limit 256M\nexternal netdev[eth0]:mg0badc0de-0\n"


def test_names_are_cut_as_lxc_cuts_them() -> None:
    text = "lxc.net.0.type = veth\nlxc.net.0.name = inside-the-container\nlxc.net.0.veth.pair = veth-webserver-01\n"
    [pair] = veths.planned(lxc_settings.parse(f"{text}lxc.net.0.link = a-bridge-of-mine-alone", "").nets, "0badc0de",
                           beforehand=True)
    assert (pair.inside, pair.outside, pair.bridge) == ("inside-the-cont", "veth-webserver-", "a-bridge-of-min")


def test_a_pair_is_made_as_lxc_makes_it() -> None:
    made = Veth(0, "eth0", "mg0badc0de-0", "veth0badc0de0", "lxcbr0", 0)
    assert shlex.join(veths.make_command(made, "fe:00:00:00:00:01", 1400)) == (
        "ip link add name veth0badc0de0 address fe:00:00:00:00:01 mtu 1400 type veth peer name mg0badc0de-0 mtu 1400")
    assert "mtu" not in veths.make_command(made, "fe:00:00:00:00:01", 0)


def test_the_kernel_must_be_able_to_number_them() -> None:
    assert [veths.possible(version) for version in ((5, 10), (5, 13), (6, 1))] == [False, True, True]


PORT = "lxc.net.0.type = veth\nlxc.net.0.link = br0\nlxc.net.0.veth.pair = c1-0\n"
VLANS = {"vlan_filtering": "1", "default_pvid": "1"}


def commands(text: str, bridge: dict[str, str], version: str = "") -> list[str]:
    (veth,) = veths.planned(lxc_settings.parse(PORT + text).nets, "0badc0de", beforehand=True)
    return [shlex.join(words)
            for words in veths.on_its_bridge(veth, "c1", version, lambda _, name: bridge.get(name, ""))]


@pytest.mark.parametrize(("text", "bridge", "wanted"), [
    ("", {}, []),
    ("lxc.net.0.veth.vlan.id = 7\n", VLANS, ["del dev c1-0 vid 1", "add dev c1-0 vid 7 pvid untagged"]),
    ("lxc.net.0.veth.vlan.id = 1\n", VLANS, ["add dev c1-0 vid 1 pvid untagged"]),
    ("lxc.net.0.veth.vlan.id = none\n", VLANS, ["del dev c1-0 vid 1"]),
    ("lxc.net.0.veth.vlan.id = 7\n", VLANS | {"default_pvid": "0"}, ["add dev c1-0 vid 7 pvid untagged"]),
    ("lxc.net.0.veth.vlan.tagged.id = 8\nlxc.net.0.veth.vlan.tagged.id = 9\n", VLANS,
     ["add dev c1-0 vid 8", "add dev c1-0 vid 9"]),
])
def test_the_vlans_of_its_port(text: str, bridge: dict[str, str], wanted: list[str]) -> None:
    assert commands(text, bridge) == [f"bridge vlan {words}" for words in wanted]


def test_a_bridge_that_knows_no_vlans() -> None:
    with pytest.raises(ValueError, match="VLAN"):
        commands("lxc.net.0.veth.vlan.id = 7\n", {"vlan_filtering": "0"})


def test_the_command_of_a_network() -> None:
    """With the arguments, or the environment, that LXC gives it at a start."""
    text = "lxc.net.0.script.up = /bin/up 'a b'\n"
    assert commands(text, {}) == [shlex.join(["sh", "-c", "exec /bin/up 'a b' c1 net up veth br0 c1-0"])]
    assert commands(text, {}, "1") == [shlex.join([
        "env", "LXC_HOOK_TYPE=up", "LXC_HOOK_SECTION=net", "LXC_NET_TYPE=veth", "LXC_NET_PEER=c1-0",
        "LXC_NET_PARENT=br0", "sh", "-c", "exec /bin/up 'a b' veth br0 c1-0"])]


HOSTS_OWN = {"192.0.2.0/24": "192.0.2.0/24 via 10.0.3.9 dev eth0 proto static", "2001:db8::/64": ""}


@pytest.mark.parametrize("again", [False, True])
def test_a_route_of_the_host_itself_stays(monkeypatch: pytest.MonkeyPatch, again: bool) -> None:
    """The others are added all the same, and one that is the container's already is no failure."""
    table = {**HOSTS_OWN, "2001:db8::/64": "2001:db8::/64 dev c1-0 metric 1024 pref medium" if again else ""}
    routes = (*table, "198.51.100.0/24")

    def run(argv: list[str], *, check: bool = True) -> Completed:
        """ip(8) of iproute2 6.15: `show` leaves the device out where it was given."""
        match argv:
            case ["ip", "route", "add", route, "dev", device]:
                if table.get(route):
                    raise CommandFailed(command=shlex.join(argv), outcome="exit status 2",
                                        output="RTNETLINK answers: File exists")
                table[route] = f"{route} dev {device} scope link"
                out = ""
            case ["ip", "-4" | "-6", "route", "show", "exact", route, "dev", device]:
                assert not check
                told = table[route]
                out = f"{told.replace(f' dev {device}', '')}\n" if f" dev {device} " in told else ""
            case _:
                pytest.fail(shlex.join(argv))
        return Completed(tuple(argv), 0, out.encode(), b"", 0.0)

    monkeypatch.setattr(veths, "run", run)
    with pytest.raises(CommandFailed, match=r"192\.0\.2\.0/24 dev c1-0"):
        veths.route([Veth(0, "eth0", "", "c1-0", "br0", 0, routes)])
    assert table["192.0.2.0/24"] == HOSTS_OWN["192.0.2.0/24"]
    assert all(" dev c1-0 " in table[route] for route in routes[1:])
    veths.route([Veth(0, "eth0", "", "c1-0", "br0", 0, routes[1:])])


NO_NAMES = ("/srv/x", "..", "../../x")


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What is run, on a host whose interfaces are the folders of `tmp_path`/class; beside it lies what is no bridge."""
    for folder in ("class/br0", "class/br1", "x"):
        (tmp_path / folder / "bridge").mkdir(parents=True)
        (tmp_path / folder / "bridge" / "default_pvid").write_text("secret\n")
        (tmp_path / folder / "mtu").write_text("secret\n")
    (tmp_path / "class" / "br0" / "mtu").write_text("9000\n")
    monkeypatch.setattr(veths, "CLASS_NET", tmp_path / "class")
    run: list[list[str]] = []
    monkeypatch.setattr(veths, "run", lambda argv, **_: run.append(argv))
    return run


@pytest.mark.parametrize("name", NO_NAMES)
def test_no_file_of_this_host_is_read_by_the_name_of_a_bridge(ran: list[list[str]], tmp_path: Path, name: str) -> None:
    link = name.replace("/srv", str(tmp_path))
    veth = Veth(0, "eth0", "mgx-0", "vethx0", link, 0)
    with pytest.raises(InvalidName) as refused:
        veths.make([veth])
    with pytest.raises(InvalidName):
        veths.bridge_setting(link, "default_pvid")
    with pytest.raises(InvalidName):
        veths.make([dataclasses.replace(veth, outside=link, bridge="br0")])
    assert "secret" not in str(refused.value) and not ran


def test_the_mtu_of_its_bridge(ran: list[list[str]]) -> None:
    """What is no number is not told to anybody."""
    for bridge, wanted in (("br0", ["mtu", "9000"]), ("br1", []), ("br2", [])):
        veths.make([Veth(0, "eth0", "mgx-0", "vethx0", bridge, 0)])
        assert ran[-1][7:9] == (wanted or ["type", "veth"])
