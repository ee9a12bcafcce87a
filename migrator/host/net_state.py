# SPDX-License-Identifier: GPL-2.0-or-later
"""Network interfaces, their addresses, and which neighbours are seen on the links: of this host, or of a container.

Uses `ip` with JSON output, because that is one quick program; importing pyroute2 takes longer than gathering all facts.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import re
import sys
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from migrator.base import log
from migrator.base.run import run
from migrator.errors.this_host import CommandFailed, CommandTimeout, ProgramMissing
from migrator.host.proc import link

LIMIT = 10.0  # seconds
LOCAL_SCOPES = ("host", "link")  # addresses that every host may have
ENTRIES_MAX = 100  # of each kind in `Unsaved`
NAMESPACES_MAX = 64  # of a container's that are looked into; anyone in there may make as many as they like
GROUPS_READ = 1 << 20  # bytes
TABLES = ("local", "main", "default")  # for which every network namespace has rules
IPV6_RULES = ((0, "local"), (32766, "main"))  # the default ones
# What the kernel joins by itself; a router also those in the second line, and a bridge those in the third.
GROUPS = frozenset(map(ipaddress.ip_address, (
    "224.0.0.1", "ff01::1", "ff02::1",
    "ff01::2", "ff02::2", "ff05::2",
    "224.0.0.106", "ff02::6a",
)))
SOLICITED = ipaddress.ip_network("ff02::1:ff00:0/104")  # one for each IPv6 address
_IGMP_DEVICE = re.compile(r"[0-9]+\t([^\t :]+) *:")
_IGMP_GROUP = re.compile(r"\t+([0-9A-F]{8}) ")
_IGMP6 = re.compile(r"[0-9]+ +([^ ]+) +([0-9a-f]{32}) ")
TLS = ("TlsCurrTxSw", "TlsCurrRxSw", "TlsCurrTxDevice", "TlsCurrRxDevice")


@dataclasses.dataclass(frozen=True)
class Interface:
    name: str
    kind: str = ""  # "veth", "bridge", "macvlan", ...; empty for a physical one, "loopback" for lo
    mac: str = ""
    addresses: tuple[str, ...] = ()  # with prefix length, without link-local ones
    master: str = ""
    mtu: int = 0
    up: bool = False
    vlans: bool = False  # a VLAN-aware bridge (vlan_filtering)


@dataclasses.dataclass(frozen=True)
class Neighbour:
    """An address that this host has seen on a link, with the MAC address that answered for it."""

    address: str
    mac: str
    interface: str
    reachable: bool = True  # it has answered lately


@dataclasses.dataclass(frozen=True)
class Unsaved:
    """What CRIU does not save of a network namespace, in words."""

    groups: tuple[str, ...] = ()  # multicast groups that are listened to
    tables: tuple[str, ...] = ()  # routing tables that IPv4 rules refer to
    rules: tuple[str, ...] = ()  # for IPv6
    queues: tuple[str, ...] = ()  # queueing disciplines (tc(8))


def interfaces(pid: int | None = None) -> tuple[Interface, ...]:
    """The interfaces of this host, or of the network namespace of process `pid`."""
    return parse_interfaces(_ask(["-d", "address", "show"], pid))


def neighbours() -> tuple[Neighbour, ...]:
    """What ARP and neighbour discovery have found and not forgotten yet."""
    return parse_neighbours(_ask(["neighbour", "show"], None))


def unsaved(pid: int) -> Unsaved:
    """Of the network namespace of process `pid`."""
    return Unsaved(
        groups=parse_groups(_read(f"/proc/{pid}/net/igmp"), _read(f"/proc/{pid}/net/igmp6")),
        tables=parse_tables(_ask(["-4", "rule", "show"], pid)),
        rules=parse_ipv6_rules(_ask(["-6", "rule", "show"], pid)),
        queues=parse_queues(_ask(["qdisc", "show"], pid, "tc")),
    )


def namespaces(init: int, pids: Iterable[int]) -> list[int]:
    """One process in each network namespace used by a container's processes, PID 1's first.

    Apart from that one, namespaces of the host are excluded: what is in them was started from outside. A process that
    has ended is in none.
    """
    host, found = link("/proc/self/ns/net"), {link(f"/proc/{init}/ns/net"): init}
    for pid in sorted(pids):
        namespace = link(f"/proc/{pid}/ns/net")
        if namespace and namespace != host:
            found.setdefault(namespace, pid)
    return list(found.values())


def encrypted(pids: Collection[int]) -> tuple[str, ...]:
    """What the kernel encrypts in the network namespaces of these processes, in words."""
    count = tls(pids)
    return ((f"TLS of {count} connections",) if count else ()) + (("IPsec",) if any(map(_has_ipsec, pids)) else ())


def tls(pids: Iterable[int]) -> int:
    """How many connections the kernel encrypts there; 0 if it cannot."""
    return sum(parse_tls(_read(f"/proc/{pid}/net/tls_stat")) for pid in pids)


def _has_ipsec(pid: int) -> bool:
    """Whether there are policies, including those of single sockets (`-s`); without any, keys have no effect.

    The kernel counts them, because anyone in there may make as many as they like.
    """
    count = ["nsenter", "--target", str(pid), "--net", "ip", "-s", "xfrm", "policy", "count"]
    try:
        return re.search(rb"[1-9]", run(count, limit=LIMIT).stdout) is not None
    except (CommandFailed, CommandTimeout, ProgramMissing) as error:
        log.debug(f"no facts about IPsec: {error}")
        return False


def _read(path: str) -> str:
    """What can be read of a file that may be of any length."""
    try:
        with Path(path).open("rb") as file:
            return file.read(GROUPS_READ).decode(errors="replace")
    except OSError:
        return ""


def _ask(words: list[str], pid: int | None, program: str = "ip") -> Any:
    enter = ["nsenter", "--target", str(pid), "--net"] if pid else []
    try:
        return json.loads(run([*enter, program, "-j", *words], limit=LIMIT).stdout or b"[]")
    except (CommandFailed, CommandTimeout, ProgramMissing, ValueError) as error:
        log.debug(f"no facts about interfaces: {error}")
        return []


def parse_interfaces(data: Any) -> tuple[Interface, ...]:
    """From `ip -j -d address show`; what does not have that form is skipped."""
    return tuple(_interface(entry) for entry in _objects(data) if isinstance(entry.get("ifname"), str))


def _interface(entry: dict[str, Any]) -> Interface:
    info = entry.get("linkinfo")
    kind = info.get("info_kind", "") if isinstance(info, dict) else ""
    data = info.get("info_data") if isinstance(info, dict) else None
    if entry.get("link_type") == "loopback":
        kind = "loopback"
    mtu = entry.get("mtu")
    flags = entry.get("flags")
    return Interface(
        name=entry["ifname"], kind=str(kind), mac=str(entry.get("address", "")).lower(),
        addresses=tuple(
            f"{address.get('local', '')}/{address.get('prefixlen', '')}" for address in _objects(entry.get("addr_info"))
            if address.get("scope") not in LOCAL_SCOPES
        ),
        master=str(entry.get("master", "")), mtu=mtu if isinstance(mtu, int) else 0,
        up="UP" in flags if isinstance(flags, list) else False,
        vlans=isinstance(data, dict) and data.get("vlan_filtering") == 1,
    )


def parse_neighbours(data: Any) -> tuple[Neighbour, ...]:
    """From `ip -j neighbour show`; entries without an answer are skipped."""
    return tuple(
        Neighbour(str(entry["dst"]), str(entry["lladdr"]).lower(), str(entry.get("dev", "")), _reachable(entry))
        for entry in _objects(data) if "lladdr" in entry and "dst" in entry
    )


def _reachable(entry: dict[str, Any]) -> bool:
    state = entry.get("state")
    return isinstance(state, list) and bool({"REACHABLE", "DELAY", "PROBE", "PERMANENT"} & set(map(str, state)))


def parse_groups(igmp: str, igmp6: str) -> tuple[str, ...]:
    """From /proc/PID/net/igmp and igmp6: the groups that someone has joined, except those only on the loopback.

    Their lines are split the way the kernel writes them: an interface's name may contain what others take for a space.
    """
    found: list[tuple[str, str]] = []
    device = ""
    for line in igmp.split("\n"):
        if named := _IGMP_DEVICE.match(line):
            device = named[1]
        elif group := _IGMP_GROUP.match(line):  # in the byte order that the address has in memory
            found.append((device, str(ipaddress.IPv4Address(int(group[1], 16).to_bytes(4, sys.byteorder)))))
    for line in igmp6.split("\n"):
        if both := _IGMP6.match(line):
            found.append((both[1], str(ipaddress.IPv6Address(int(both[2], 16)))))
    return _some(f"{address} on {device}" for device, address in found
                 if device != "lo" and not _of_the_kernel(ipaddress.ip_address(address)))


def _of_the_kernel(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return address in GROUPS or address in SOLICITED


def parse_tables(data: Any) -> tuple[str, ...]:
    """From `ip -j -4 rule show`."""
    return _some(str(entry["table"]) for entry in _objects(data) if entry.get("table", "main") not in TABLES)


def parse_ipv6_rules(data: Any) -> tuple[str, ...]:
    """From `ip -j -6 rule show`."""
    return _some(f"{entry.get('priority')} (table {entry.get('table')})" if "table" in entry
                 else str(entry.get("priority")) for entry in _objects(data)
                 if entry.get("src") != "all" or entry.keys() > {"priority", "src", "table"}
                 or (entry.get("priority"), entry.get("table")) not in IPV6_RULES)


def parse_queues(data: Any) -> tuple[str, ...]:
    """From `tc -j qdisc show`; those that the kernel adds to an interface by itself have no handle."""
    return _some(f"{entry.get('kind')} of {entry.get('dev')}" for entry in _objects(data)
                 if entry.get("handle", "0:") != "0:")


def parse_tls(text: str) -> int:
    """How many connections the kernel encrypts or decrypts, itself or by a network card.

    From /proc/PID/net/tls_stat (Documentation/networking/tls.rst), which exists once the kernel can do that.
    """
    counts = dict(words for line in text.splitlines() if len(words := line.split()) == 2)
    return max([int(count) for name, count in counts.items() if name in TLS and count.isdecimal()], default=0)


def _some(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word[:200] for word in words))[:ENTRIES_MAX]


def _objects(data: Any) -> list[dict[str, Any]]:
    return [entry for entry in data if isinstance(entry, dict)] if isinstance(data, list) else []
