# SPDX-License-Identifier: GPL-2.0-or-later
"""The network as a plan: which links, which addresses, for which NAT types."""

from __future__ import annotations

import itertools
import re

import pytest
from riglib import nat, network
from riglib.errors import RigError

from harness.rig import VAGRANT

PAIRS = list(itertools.product(nat.KINDS, repeat=2))


def plan(a: str, b: str) -> network.Plan:
    return network.plan(nat.parse(a), nat.parse(b))


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_links_and_addresses_fit_together(a: str, b: str) -> None:
    made = plan(a, b)
    ends = [end for link in made.links for end in link]
    assert len(set(ends)) == len(ends), "an interface has two links"
    assert all(len(end.interface) <= 15 for end in ends)
    interfaces = {(end.host, end.interface) for end in ends} | {(host, "lxcbr0") for host in ("hosta", "hostb")}
    given = []
    for host, lines in made.lines.items():
        for line in lines:
            words = line.split()
            if words[:2] == ["address", "add"]:
                assert (host, words[4]) in interfaces, f"{host}: {line}"
                if words[4] != "lxcbr0":
                    given.append(words[2])
    assert len(set(given)) == len(given), "an address is there twice"


def test_without_nat_all_share_one_segment() -> None:
    made = plan("none", "none")
    assert {one.host for one, _ in made.links} == {"switch"}
    assert {other.host for _, other in made.links} == {"hosta", "hostb", "client", "rendezvous"}
    assert made.rules == {}
    assert made.addresses["hosta"] == ["10.0.3.2", "fd00:3::2"]
    assert "link set eth0 master lxcbr0" in made.lines["hostb"]


@pytest.mark.parametrize("kind", [kind for kind in nat.KINDS if kind != "none"])
def test_a_host_behind_nat_reaches_nobody_directly(kind: str) -> None:
    made = plan(kind, "none")
    nearest = "nata2" if kind == "double" else "nata"
    assert [one.host for one, other in made.links if other.host == "hosta"] == [nearest]
    assert [one.host for one, other in made.links if other.host == "hostb"] == ["switch"]
    assert set(made.rules) == {"hosta", "hostb", "nata"} | ({"nata2"} if kind == "double" else set())
    assert not any("master lxcbr0" in line for lines in made.lines.values() for line in lines)


@pytest.mark.parametrize("mbit", [0, -1, 100_001])
def test_rates_out_of_range(mbit: int) -> None:
    with pytest.raises(RigError):
        network.check_mbit(mbit)


def test_virtual_machines_have_the_same_addresses() -> None:
    text = (VAGRANT / "Vagrantfile").read_text()
    found = {name: int(number) for name, number in re.findall(r'"(host[ab])" => (\d+)', text)}
    found["client"] = int(re.findall(r"^CLIENT = (\d+)$", text, re.MULTILINE)[0])
    assert found == {host: network.LAN[host] for host in ("hosta", "hostb", "client")}
