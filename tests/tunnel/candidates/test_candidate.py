# SPDX-License-Identifier: GPL-2.0-or-later
"""What may be probed of what a peer sends, and what this host offers of itself."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from migrator.base.strict_json import Malformed
from tests.effort import tries
from tests.tunnel.json_values import json_values
from tunnel.candidates import candidate
from tunnel.candidates.candidate import CANDIDATES_MAX, RAW_MAX, Candidate, sane
from tunnel.candidates.nat import Observation


def sent(address: str, port: Any = 40000, kind: str = "host") -> dict[str, Any]:
    return {"kind": kind, "address": address, "port": port}


@pytest.mark.parametrize("address", [
    "198.51.100.2", "10.1.0.2", "192.168.1.7", "100.64.1.1", "2001:db8::1", "64:ff9b:2::1", "fd00::1",
])  # fmt: skip
def test_taken(address: str) -> None:
    assert sane([sent(address)]) == [Candidate("host", address, 40000)]


@pytest.mark.parametrize("address", [
    "127.0.0.1", "127.1.2.3", "0.0.0.0", "0.1.2.3",  # noqa: S104
    "224.0.0.1", "239.255.255.250", "255.255.255.255", "240.0.0.1",
    "169.254.169.254", "::", "::1", "ff02::1", "fe80::1", "fe80::1%eth0", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
    "64:ff9b::7f00:1", "64:ff9b:1::7f00:1", "64:ff9b:1:fffe::a00:1",
    "2002:7f00:1::", "2001:0:7f00:1::", "localhost", "example.org", "010.0.0.1", "10.1", "1", "",
    "2001:DB8::1", "2001:db8:0::1", "10.0.0.1 ", "10.0.0.1/8",
])  # fmt: skip
def test_left_out(address: str) -> None:
    assert sane([sent(address)]) == []


@pytest.mark.parametrize("port", [22, 53, 80, 443, 1023])
def test_privileged_ports_are_left_out(port: int) -> None:
    assert sane([sent("198.51.100.2", port)]) == []


def test_own_addresses_are_left_out() -> None:
    """Both hosts can have the same address behind their NATs: a probe of it would come back to ourselves."""
    assert sane([sent("10.0.3.1"), sent("10.0.3.2")], own={"10.0.3.1"}) == [Candidate("host", "10.0.3.2", 40000)]


def test_a_peer_names_no_relay() -> None:
    assert sane([sent("198.51.100.2", kind="relay"), sent("198.51.100.2", kind="other")]) == []


def test_cap_and_dedupe() -> None:
    many = [sent(f"198.51.100.{n}") for n in range(1, 60)]
    assert len(sane(many)) == CANDIDATES_MAX
    assert len(sane([sent("198.51.100.1"), sent("198.51.100.1", kind="reflexive")])) == 1
    with pytest.raises(Malformed):
        sane([sent("198.51.100.1")] * (RAW_MAX + 1))


@pytest.mark.parametrize("each", [
    None, "198.51.100.1:1", [], {}, sent("198.51.100.1", "40000"), sent("198.51.100.1", True), sent("198.51.100.1", 0),
    sent("198.51.100.1", 65536), sent("198.51.100.1", 40000.0), {"kind": 1, "address": "198.51.100.1", "port": 2000},
    sent("x" * 100), sent("198.51.100.1\n"),
])  # fmt: skip
def test_malformed(each: Any) -> None:
    with pytest.raises(Malformed):
        sane([each])


addresses = st.ip_addresses().map(str) | st.text("0123456789abcdef:.%", max_size=46)


@settings(max_examples=tries(40, 500))
@given(st.lists(json_values | st.fixed_dictionaries({
    "kind": st.sampled_from(["host", "reflexive", "ipv6", "relay"]) | st.text(max_size=5),
    "address": addresses, "port": st.integers(-1, 70000),
}), max_size=RAW_MAX + 5))  # fmt: skip
def test_anything_may_be_sent(raw: list[Any]) -> None:
    try:
        found = sane(raw, own={"10.0.0.1"})
    except Malformed:
        return
    assert len(found) <= CANDIDATES_MAX
    assert len({each.endpoint for each in found}) == len(found)
    for each in found:
        ip = ipaddress.ip_address(each.address)
        assert not (ip.is_multicast or ip.is_loopback or ip.is_unspecified or ip.is_link_local)
        assert each.port >= candidate.PORT_MIN
        assert each.kind != "relay"


def test_own_offer_can_be_taken_by_a_peer() -> None:
    own = candidate.host_candidates(40000)
    assert sane([each.to_json() for each in own]) == own
    assert all(each.port == 40000 for each in own)
    assert len(own) <= 2 * candidate.HOST_MAX


def test_reflexive() -> None:
    reflector, local = ("192.0.2.1", 3478), ("10.1.0.2", 40000)
    host = [Candidate("host", "10.1.0.2", 40000)]
    assert candidate.reflexive_candidates([Observation(reflector, local, ("198.51.100.2", 7000))], host) == [
        Candidate("reflexive", "198.51.100.2", 7000)
    ]
    assert candidate.reflexive_candidates([Observation(reflector, local, local)], host) == []
    # A reflector that lies cannot make us offer what no peer could probe.
    assert candidate.reflexive_candidates([Observation(reflector, local, ("127.0.0.1", 7000))], host) == []
    many = [Observation(("192.0.2.1", n), local, ("198.51.100.2", n)) for n in range(2000, 2050)]
    assert len(candidate.reflexive_candidates(many, host)) <= 4


@pytest.mark.parametrize(("address", "private"), [
    ("10.0.0.1", True), ("172.16.0.1", True), ("172.32.0.1", False), ("192.168.0.1", True), ("100.64.0.1", True),
    ("198.51.100.2", False), ("fd00::1", True), ("64:ff9b:1::a00:1", True), ("64:ff9b:2::1", False),
    ("2001:db8::1", False), ("fe80::1%eth0", False),
])  # fmt: skip
def test_private(address: str, private: bool) -> None:
    assert candidate.private(address) is private
