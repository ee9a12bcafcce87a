# SPDX-License-Identifier: GPL-2.0-or-later
"""The addresses of a container, from its configuration and from what it has configured itself."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from migrator.config.lxc_settings import Net
from migrator.host.net_state import Interface
from migrator.preflight.checks.case import Case
from migrator.preflight.facts.host_facts import HostFacts


def interface(host: HostFacts, name: str) -> Interface | None:
    return next((interface for interface in host.interfaces if interface.name == name), None)


def name_inside(net: Net) -> str:
    return net.name or f"eth{net.index}"


def own(case: Case, net: Net) -> list[str]:
    inner = [entry for entry in case.container.interfaces if entry.name == name_inside(net)]
    return [*net.addresses, *(address for entry in inner for address in entry.addresses)]


def all_own(case: Case) -> list[str]:
    configured = [address for net in case.container.config.nets for address in net.addresses]
    return configured + [
        address for entry in case.container.interfaces if entry.kind != "loopback" for address in entry.addresses
    ]


def macs(case: Case) -> set[str]:
    inner = {entry.mac.lower() for entry in case.container.interfaces if entry.kind not in ("loopback", "bridge")}
    return (inner | {net.hwaddr for net in case.container.config.nets}) - {"", "00:00:00:00:00:00"}


def parsed(texts: Iterable[str]) -> list[ipaddress.IPv4Interface | ipaddress.IPv6Interface]:
    found = []
    for text in texts:
        try:
            found.append(ipaddress.ip_interface(text))
        except ValueError:
            continue
    return found


def plain(texts: Iterable[str]) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    return list(dict.fromkeys(interface.ip for interface in parsed(texts)))
