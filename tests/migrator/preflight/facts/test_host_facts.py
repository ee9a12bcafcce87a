# SPDX-License-Identifier: GPL-2.0-or-later
"""What is known of a host."""

from __future__ import annotations

import ipaddress
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrator.config.lxc_settings import IdMap
from migrator.host.net_state import (
    Interface,
    Neighbour,
    parse_groups,
    parse_interfaces,
    parse_ipv6_rules,
    parse_neighbours,
    parse_queues,
    parse_tables,
    parse_tls,
)
from migrator.preflight.facts import criu_facts, host_facts
from migrator.preflight.facts.criu_facts import CriuFacts
from migrator.preflight.facts.facts_message import HostAnswer
from migrator.preflight.facts.host_facts import Query, version_tuple
from migrator.transfer.wire_codec import decoded, encoded
from tests.migrator.made_up import JSON


def test_interfaces() -> None:
    data = [
        {"ifname": "lo", "link_type": "loopback", "flags": ["UP"], "mtu": 65536,
         "addr_info": [{"local": "127.0.0.1", "prefixlen": 8, "scope": "host"}]},
        {"ifname": "br0", "address": "AA:BB:CC:00:00:01", "mtu": 1400, "linkinfo": {"info_kind": "bridge"},
         "addr_info": [
            {"local": "10.0.0.1", "prefixlen": 24, "scope": "global"},
            {"local": "fe80::1", "prefixlen": 64, "scope": "link"}]},
        {"no": "name"},
    ]
    assert parse_interfaces(data) == (
        Interface("lo", "loopback", mtu=65536, up=True),
        Interface("br0", "bridge", "aa:bb:cc:00:00:01", ("10.0.0.1/24",), mtu=1400),
    )


def test_neighbours() -> None:
    data = [{"dst": "10.0.0.9", "dev": "br0", "lladdr": "AA:00:00:00:00:01", "state": ["STALE"]},
            {"dst": "fd00::1", "dev": "br0", "state": ["FAILED"]}]
    assert parse_neighbours(data) == (Neighbour("10.0.0.9", "aa:00:00:00:00:01", "br0", False),)
    data[0]["state"] = ["REACHABLE"]
    assert parse_neighbours(data)[0].reachable


IGMP = """Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter
1\tlo        :     2      V3
\t\t\t\t{own} 1 0:00000000\t\t0
\t\t\t\t{joined} 1 0:00000000\t\t0
3\tname-of-15-char:     2      V3
\t\t\t\t{joined}     1 0:00000000\t\t0
\t\t\t\t{own}     1 0:00000000\t\t0
"""
IGMP6 = """1    lo              ff020000000000000000000000000001     1 0000000C 0
3    e\u2003th          ff0200000000000000000000000000fb     1 00000004 0
3    e\u2003th          ff0200000000000000000001ffd8f72c     1 00000004 0
3    e\u2003th          ff020000000000000000000000000002     1 00000004 0
3    e\u2003th          ff020000000000000000000000000001     1 0000000C 0
3    e\u2003th          ff010000000000000000000000000001     1 00000008 0
"""


def test_multicast_groups() -> None:
    def shown(address: str) -> str:
        return f"{int.from_bytes(ipaddress.IPv4Address(address).packed, sys.byteorder):08X}"

    igmp = IGMP.format(own=shown("224.0.0.1"), joined=shown("239.1.2.3"))
    assert parse_groups(igmp, IGMP6) == ("239.1.2.3 on name-of-15-char", "ff02::fb on e\u2003th")
    many = "".join(f"3    eth0            ff02{number:028x}     1 00000004 0\n" for number in range(256, 5000))
    assert len(parse_groups("", many)) == 100


@given(st.text())
def test_any_groups(text: str) -> None:
    parse_groups(text, text)
    assert parse_tls(text) >= 0


def test_connections_that_the_kernel_encrypts() -> None:
    text = "TlsCurrTxSw                     \t{}\nTlsCurrRxSw     \t{}\nTlsTxSw      \t70\nTlsDecryptError \t3\n"
    assert [parse_tls(text.format(*counts)) for counts in ((0, 0), (2, 0), (2, 5))] == [0, 2, 5]
    assert parse_tls("") == 0, "it cannot do that"


def test_routing_that_is_not_saved() -> None:
    default = {"priority": 32766, "src": "all", "table": "main"}
    ipv4 = [{"priority": 0, "src": "all", "table": "local"}, {"priority": 5, "src": "10.0.0.9", "table": "100"},
            {"priority": 6, "src": "10.0.0.8", "table": "100"}, {"priority": 7, "src": "all", "action": "blackhole"},
            {"priority": 8, "src": "all", "fwmark": "0x9", "table": "main"}, default]
    assert parse_tables(ipv4) == ("100",)
    assert parse_ipv6_rules([ipv4[0], default]) == ()
    ipv6 = [ipv4[0], *ipv4[3:], {"priority": 9, "src": "2001:db8::", "srclen": 64, "table": "200"}]
    assert parse_ipv6_rules(ipv6) == ("7", "8 (table main)", "9 (table 200)")
    assert parse_queues([
        {"kind": "noqueue", "handle": "0:", "dev": "lo", "root": True}, {"kind": "mq", "handle": "0:", "dev": "t0"},
        {"kind": "clsact", "handle": "ffff:", "dev": "eth0", "parent": "ffff:fff1"},
        {"kind": "tbf", "handle": "801c:", "dev": "eth0", "root": True}]) == ("clsact of eth0", "tbf of eth0")


@given(JSON)
def test_any_json_of_ip(data: Any) -> None:
    for parse in (parse_tables, parse_ipv6_rules, parse_queues):
        parse(data)
        parse([data, {"table": data, "src": data, "priority": data, "handle": data, "kind": data, "dev": data}])
    parse_interfaces(data)
    parse_interfaces([data, {"ifname": "x", "linkinfo": data, "addr_info": data, "flags": data, "mtu": data}])
    parse_neighbours(data)
    parse_neighbours([data, {"dst": data, "lladdr": data, "state": data}])


@pytest.mark.parametrize(("text", "version"), [
    ("6.18.44-fc-v657", (6, 18, 44)), ("6.1", (6, 1)), ("7.0.0", (7, 0, 0)), ("6.13-rc1", (6, 13)), ("v5", ()),
    ("", ()), ("4.2.1", (4, 2, 1)), ("1..2", (1,)), ("9" * 40, ()),
])
def test_versions(text: str, version: tuple[int, ...]) -> None:
    assert version_tuple(text) == version


def test_criu_version() -> None:
    assert criu_facts.parse_version("Version: 4.2.1\nGitID: v4.2-1\n") == "4.2.1"
    assert criu_facts.parse_version("nothing") == ""


def test_active_containers() -> None:
    text = ("Num RefCount\n0: 2 0 1 1 01 5 @/pool/c1/command\n1: 2 0 1 1 01 5 @/pool/c2/command\n"
            "2: 2 0 1 1 01 6 @/var/lib/lxc/c3/command\n3: 2 0 0 1 03 7 /run/x\n")
    assert host_facts.active(text, "/pool/") == {"c1", "c2"}


def test_other_containers(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config").write_text("lxc.net.0.type = veth\nlxc.net.0.hwaddr = 00:16:3e:00:00:01\n")
    (tmp_path / "empty").mkdir()
    others = host_facts.containers(tmp_path, frozenset(["b"]))
    assert [(other.name, other.running) for other in others] == [("a", False), ("b", True)]
    assert others[0].macs == ("00:16:3e:00:00:01",)
    assert host_facts.containers(tmp_path / "none", frozenset()) == ()


def test_ids() -> None:
    assert host_facts.parse_id_map("u", "         0          0 4294967295\n") == ()
    assert host_facts.parse_id_map("u", "0 500000 65536\nx\n") == (IdMap("u", 0, 500000, 65536),)
    assert host_facts.parse_subids("u", "lxc:1:2\nroot:100000:65536\n0:7:1\nroot:x:y\n") == (
        IdMap("u", 0, 100000, 65536), IdMap("u", 0, 7, 1))


def test_meminfo() -> None:
    assert host_facts.parse_meminfo("MemTotal: 16 kB\nHugePages_Total:  2\nx\n") == {
        "MemTotal": 16384, "HugePages_Total": 2}


def test_path_kinds(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "broken").symlink_to("nowhere")
    kinds = {name: host_facts.path_kind(str(tmp_path / name)) for name in ("", "file", "link", "broken", "none")}
    assert kinds == {"": "folder", "file": "file", "link": "symlink", "broken": "", "none": ""}
    assert host_facts.path_kind("/dev/null") == "device"
    assert host_facts.path_kind("/x\0y") == host_facts.path_kind("/" + "x" * 300) == ""


def test_storage_of_what_is_yet_to_be_made(tmp_path: Path) -> None:
    found = host_facts.storage(tmp_path / "a" / "b")
    assert not found.exists and found.free > 0 and found.filesystem
    assert host_facts.storage(tmp_path).exists


def test_this_host_can_be_looked_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Wherever the tests run: nothing is raised for what is missing here, and what was found crosses the wire."""
    monkeypatch.setattr(criu_facts, "gather", CriuFacts)
    facts = host_facts.gather(Query(str(tmp_path), ("/etc/passwd", "relative", "/no/such/file")))
    assert facts.present == {"/etc/passwd": "file"}
    assert facts.name and facts.identity and facts.kernel_version and facts.memory_total > facts.memory_available > 0
    sent = encoded(HostAnswer(facts=facts, fenced_copy=False))
    assert decoded(HostAnswer, json.loads(json.dumps(sent))).facts == facts
