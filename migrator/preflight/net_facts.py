# SPDX-License-Identifier: GPL-2.0-or-later
"""Network interfaces, their addresses, and who is seen on the links: of this host, or of a container.

`ip` in its JSON form, because it is one quick program; pyroute2 takes longer to import than all facts to gather.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from migrator import log
from migrator.errors import CommandFailed, CommandTimeout, ProgramMissing
from migrator.run import run

LIMIT = 10.0  # seconds
LOCAL_SCOPES = ("host", "link")  # addresses that every host may have


@dataclasses.dataclass(frozen=True)
class Interface:
    name: str
    kind: str = ""  # "veth", "bridge", "macvlan", ...; empty for a physical one, "loopback" for lo
    mac: str = ""
    addresses: tuple[str, ...] = ()  # with prefix length, without those of the link alone
    master: str = ""
    mtu: int = 0
    up: bool = False
    vlans: bool = False  # a bridge that tells VLANs apart (vlan_filtering)


@dataclasses.dataclass(frozen=True)
class Neighbour:
    """An address that this host has seen on a link, with the hardware address that answered for it."""

    address: str
    mac: str
    interface: str
    reachable: bool = True  # it has answered lately


def interfaces(pid: int | None = None) -> tuple[Interface, ...]:
    """The interfaces of this host, or of the network namespace of process `pid`."""
    return parse_interfaces(_ask(["-d", "address", "show"], pid))


def neighbours() -> tuple[Neighbour, ...]:
    """What ARP and neighbour discovery have found and not yet forgotten."""
    return parse_neighbours(_ask(["neighbour", "show"], None))


def _ask(words: list[str], pid: int | None) -> Any:
    enter = ["nsenter", "--target", str(pid), "--net"] if pid else []
    try:
        return json.loads(run([*enter, "ip", "-j", *words], limit=LIMIT).stdout or b"[]")
    except (CommandFailed, CommandTimeout, ProgramMissing, ValueError) as error:
        log.debug(f"no facts about interfaces: {error}")
        return []


def parse_interfaces(data: Any) -> tuple[Interface, ...]:
    """From `ip -j -d address show`; what is not of that form is left out."""
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
    """From `ip -j neighbour show`; entries without an answer are left out."""
    return tuple(
        Neighbour(str(entry["dst"]), str(entry["lladdr"]).lower(), str(entry.get("dev", "")), _reachable(entry))
        for entry in _objects(data) if "lladdr" in entry and "dst" in entry
    )


def _reachable(entry: dict[str, Any]) -> bool:
    state = entry.get("state")
    return isinstance(state, list) and bool({"REACHABLE", "DELAY", "PROBE", "PERMANENT"} & set(map(str, state)))


def _objects(data: Any) -> list[dict[str, Any]]:
    return [entry for entry in data if isinstance(entry, dict)] if isinstance(data, list) else []
