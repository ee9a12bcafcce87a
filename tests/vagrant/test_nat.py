# SPDX-License-Identifier: GPL-2.0-or-later
"""The routers' rules, as text; that they do what they are named for is tested on the rig."""

from __future__ import annotations

import pytest
from riglib import nat
from riglib.errors import RigError

PLAIN = 'oifname "wan0" masquerade;'
RANDOM = 'oifname "wan0" masquerade fully-random;'
INPUT = 'iifname "wan0" udp dport 1024-65535 drop'
NO_UDP = "meta l4proto udp drop"
TO_ALL = 'iifname "wan0" dnat to udp dport map @mapped'
TO_SPOKEN = "ip saddr . udp dport @spoken dnat to udp dport map @mapped"
EVERY = (PLAIN, RANDOM, INPUT, NO_UDP, TO_ALL, TO_SPOKEN)

RULES = {
    "full-cone": {PLAIN, INPUT, TO_ALL},
    "full-cone,no-input-drop": {PLAIN, TO_ALL},
    "address-restricted": {PLAIN, INPUT, TO_SPOKEN},
    "port-restricted": {PLAIN, INPUT},
    "port-restricted,no-input-drop": {PLAIN},
    "symmetric": {RANDOM, INPUT},
    "double": {PLAIN, INPUT},
    "blocked": {PLAIN, INPUT, NO_UDP},
}


@pytest.mark.parametrize("text", RULES)
def test_router_rules(text: str) -> None:
    rules = nat.router_rules(nat.parse(text))
    assert {rule for rule in EVERY if rule in rules} == RULES[text]
    assert rules.startswith("flush ruleset\n")
    assert rules.count("{") == rules.count("}")


@pytest.mark.parametrize("text", ["none", *RULES])
def test_a_type_is_printed_as_it_is_read(text: str) -> None:
    assert str(nat.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "unknown NAT type ''"),
        ("cone", "unknown NAT type 'cone'"),
        ("Symmetric", "unknown NAT type 'Symmetric'"),
        ("symmetric,", "unknown NAT option ''"),
        ("symmetric,drop", "unknown NAT option 'drop'"),
    ],
)
def test_what_is_no_type(text: str, said: str) -> None:
    with pytest.raises(RigError, match=said) as caught:
        nat.parse(text)
    assert caught.value.hint


def test_every_type_has_rules() -> None:
    assert {text.partition(",")[0] for text in RULES} | {"none"} == set(nat.KINDS)
