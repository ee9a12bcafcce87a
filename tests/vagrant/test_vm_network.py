# SPDX-License-Identifier: GPL-2.0-or-later
"""What a virtual machine of the rig with NATs is told to do with its network."""

from __future__ import annotations

import itertools
import re
import subprocess

import pytest
from riglib import nat, network, vm_network
from riglib.errors import RigError

from harness.rig import VAGRANT

KINDS = [kind for kind in nat.KINDS if kind not in ("none", "double")]
MACHINES = ("hosta", "hostb", "nata", "natb", "rendezvous", "client")


@pytest.mark.parametrize("host", MACHINES)
@pytest.mark.parametrize(("a", "b"), list(itertools.product(KINDS, KINDS)))
def test_a_shell_can_read_it_and_it_has_the_plans_addresses(host: str, a: str, b: str) -> None:
    script = vm_network.script(host, nat.parse(a), nat.parse(b))
    subprocess.run(["sh", "-n"], input=script, text=True, check=True, timeout=30)
    addresses = network.plan(nat.parse(a), nat.parse(b)).addresses
    assert all(f"address replace {address}/24 dev " in script for address in addresses[host])
    assert " default" not in script.partition("LINES")[2], "the way to the internet is Vagrant's"
    assert not re.search(r"\beth0\b", script), "that may be Vagrant's card"


def test_a_host_reaches_the_outside_through_its_router_alone() -> None:
    script = vm_network.script("hostb", nat.parse("symmetric"), nat.parse("port-restricted"))
    assert {line for line in script.splitlines() if line.startswith("route")} == {
        "route replace 198.51.100.0/24 via 10.2.0.1", "route replace 203.0.113.0/24 via 10.2.0.1"}
    assert 'oifname "$vagrants" ip daddr $neighbours drop' in script


def test_the_routers_have_the_rules_of_their_types() -> None:
    script = vm_network.script("natb", nat.parse("port-restricted"), nat.parse("symmetric"))
    assert 'oifname "wan0" masquerade fully-random;' in script
    assert "flush ruleset" not in script


@pytest.mark.parametrize(("host", "a", "b"), [
    ("hosta", "none", "symmetric"), ("hosta", "symmetric", "double"), ("switch", "symmetric", "symmetric"),
    ("natc", "symmetric", "symmetric"),
])
def test_what_there_is_no_machine_for(host: str, a: str, b: str) -> None:
    with pytest.raises(RigError):
        vm_network.script(host, nat.parse(a), nat.parse(b))


def test_the_vagrantfile_has_the_plans_wires() -> None:
    """Machines that the plan links, directly or by the switch, are on one wire, by the cards of the same names."""
    made = network.plan(nat.parse("symmetric"), nat.parse("symmetric"))
    text = (VAGRANT / "Vagrantfile").read_text()
    wires: dict[tuple[str, str], str] = {}
    for machine, cards in re.findall(r'^  "(\w+)" => \{ (.*) \},$', text, re.MULTILINE):
        for card, wire in re.findall(r'"(\w+)" => "([\w-]+)"', cards):
            wires[machine, card.replace(vm_network.CARD, "eth0")] = wire
    assert {machine for machine, _ in wires} == set(MACHINES)
    for one, other in made.links:
        assert wires[other.host, other.interface] == (
            "wan" if one.host == "switch" else wires[one.host, one.interface])
