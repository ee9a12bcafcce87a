# SPDX-License-Identifier: GPL-2.0-or-later
"""The container's network: what CRIU can carry over, and whether its place on the destination is free."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from migrator.base import names
from migrator.config.lxc_settings import Net
from migrator.criu import veths
from migrator.errors.containers import InvalidName
from migrator.host import network
from migrator.host.net_state import Interface
from migrator.preflight.checks import net_addresses
from migrator.preflight.checks.case import Case, Check, listed
from migrator.preflight.facts.host_facts import HostFacts
from migrator.preflight.findings import Finding, Severity, define

ERROR, WARNING, INFO = Severity.ERROR, Severity.WARNING, Severity.INFO
BRIDGES = ("bridge",)  # what LXC and CRIU attach a restored veth to; neither supports Open vSwitch for that
SHARED = "A bridge that both hosts share"  # a headline of docs/guide.md
# What lxc-net gives every lxcbr0 on every host (LXC_BRIDGE_MAC in its script): LXC 6.0.4 and 7.0, and older versions.
LXC_NET_MACS = ("10:66:6a:00:00:00", "00:16:3e:00:00:00")
# What liblxc restores (criu_ok in src/lxc/criu.c).
RESTORABLE = ("veth", "none", "empty", "phys", "macvlan")
# What CRIU dumps inside a network namespace (dump_one_link in criu/net.c). The kernel itself makes the last three.
DUMPABLE = ("loopback", "veth", "tun", "bridge", "macvlan", "venet", "sit")
IGNORED_NAMES = ("sit0", "gre0", "gretap0")

NET_TYPE = define("network-type", ERROR, """liblxc cannot restore this type of network; it can restore veth, macvlan,
    phys, empty and none.""", memory_only=True)
HOST_NETWORK = define("host-network", ERROR, """With lxc.net.0.type = none the container uses the host's own addresses
    and ports: its connections cannot move without the host. If it is restarted there, it has those of that host.""")
NET_UNTRIED = define("network-not-bridged", WARNING, """macvlan and phys interfaces are restored on the destination's
    device of that name, but only a veth on a bridge is certain to keep its connections.""", memory_only=True)
ROUTER = define("veth-router", ERROR, """LXC sets up a routed veth only at a start: its gateway and the routes to the
    container's addresses would be missing on the destination, and nobody could reach it.""", memory_only=True)
UNMADE = define("veth-not-made", ERROR, """CRIU cannot be relied on to create the veth of a container with an id
    mapping, and it can be created beforehand only from Linux 5.13 on, under a name that CRIU's configuration file
    accepts.""",
    memory_only=True)
SILENCE = define("network-not-silenced", ERROR, """While it is frozen the container must neither receive nor send
    anything: what it sends can be dropped at the host's end of its veth from Linux 5.16 on.""", memory_only=True)
VLAN = define("bridge-without-vlans", ERROR, """lxc.net.N.veth.vlan.* sets the VLANs of the veth's port on its bridge,
    which must have VLAN filtering on.""")
BRIDGE = define("bridge-missing", ERROR, "The container's veth is attached to a bridge that the destination must have.")
NOT_BRIDGE = define("not-a-bridge", ERROR, """A restored veth is attached to a Linux bridge. LXC adds it to an Open
    vSwitch bridge only when it starts the container.""")
LINK = define("link-missing", ERROR, "An interface other than a veth needs its parent device on the destination.")
MTU = define("mtu-smaller", WARNING, """The bridge would drop the container's larger packets; open connections stall
    as soon as they send much.""")
SUBNET = define("foreign-subnet", WARNING, """The container keeps its address; if the bridge only has addresses of other
    networks, it may not be routed there.""")
NOT_SHARED = define("bridge-not-shared", WARNING, """The container keeps its address, and its connections survive only
    if both bridges are on one segment. lxc-net gives each host a bridge of its own, all with the same address.""")
ADDRESS_TAKEN = define("address-taken", ERROR, "The container keeps its addresses: nothing else may have one of them.")
MAC_TAKEN = define("mac-taken", ERROR, "The container keeps its MAC address; nothing else on the link may have it.")
PAIR_TAKEN = define("veth-pair-taken", ERROR, """lxc.net.N.veth.pair names the host's end of the veth, and an interface
    of that name exists on the destination.""")
KIND = define("interface-kind", ERROR, "CRIU cannot dump this kind of interface (dump_one_link in criu/net.c).",
    memory_only=True)
LEASE = define("address-not-configured", INFO, """The address is not in the configuration and may be a DHCP lease: it is
    valid as long as the lease, and the server on the destination's network must know it.""")
SHARED_NS = define("shared-namespace", ERROR, "A namespace that belongs to the host or another container cannot move.")


def types(case: Case) -> Iterator[Finding]:
    name = case.container.name
    for net in case.container.config.nets:
        if net.type == "none":
            yield HOST_NETWORK.found(f"{name} shares the network of its host (lxc.net.{net.index}.type = none).",
                                     f"Give it an interface of its own: lxc.net.{net.index}.type = veth",
                                     severity=case.hinders_restore)
        elif net.type not in RESTORABLE:
            yield NET_TYPE.found(f"lxc.net.{net.index}.type = {net.type or '(empty)'} of {name} cannot be restored.",
                                 f"Use lxc.net.{net.index}.type = veth with a bridge.")
        elif net.type == "veth" and net.mode == "router":
            yield ROUTER.found(f"lxc.net.{net.index} of {name} is routed (veth.mode = router).",
                               "Move it with --no-memory, or use a bridge.")
        elif net.type in ("macvlan", "phys"):
            yield NET_UNTRIED.found(f"lxc.net.{net.index} of {name} is {net.type} on {net.link or 'no device'}.",
                                    f"Use lxc.net.{net.index}.type = veth with a bridge.")
    for entry in case.container.config.shared_namespaces:
        yield SHARED_NS.found(f"{name} shares a namespace: lxc.namespace.{entry}.",
                              "Remove the line and restart the container.")


def silence(case: Case) -> Iterator[Finding]:
    if case.source.kernel_version < network.KERNEL and any(net.type == "veth" for net in case.container.config.nets):
        yield SILENCE.found(f"{case.source.name} runs kernel {case.source.kernel}.",
                            f"Boot {case.source.name} with a newer one, or move the container with --no-memory.")


def made(case: Case) -> Iterator[Finding]:
    """CRIU itself creates those of a container without an id mapping."""
    there, config = case.destination, case.container.config
    if not there or not config.idmaps:
        return
    possible = veths.possible(there.kernel_version)
    for veth in veths.planned(config.nets, "", beforehand=possible):
        if not veth.made:
            why = f"with the name {veth.inside!r}" if possible else f"with the kernel {there.kernel}"
            yield UNMADE.found(
                f"lxc.net.{veth.number} of {case.container.name} cannot be created on {there.name} {why}.",
                f"Set lxc.net.{veth.number}.name to letters and digits and restart the container, or move it with"
                " --no-memory." if possible else f"Boot {there.name} with Linux 5.13 or newer.")


def links(case: Case) -> Iterator[Finding]:
    there = case.destination
    for net in case.container.config.nets if there else ():
        if there and net.link and net.type in ("veth", "macvlan", "phys", "ipvlan", "vlan"):
            yield from _link(there, net, case.options.bridges.get(net.link, net.link))


def _link(there: HostFacts, net: Net, wanted: str) -> Iterator[Finding]:
    found, bridge = net_addresses.interface(there, wanted), shlex.quote(wanted)
    if net.type != "veth":
        if found is None:
            yield LINK.found(f"{there.name} has no interface {wanted} for lxc.net.{net.index} ({net.type}).",
                             f"Create it there, or map it to another: --map-bridge {_mapped(net)}")
    elif found is None:
        have = [each.name for each in there.interfaces if each.kind in BRIDGES and _can_be_named(each.name)]
        choice = have[0] if len(have) == 1 else "NAME"
        known = f" (it has {listed(have)})" if have else " and no other"
        yield BRIDGE.found(
            f"{there.name} has no bridge {wanted}{known}.",
            f"Map it: --map-bridge {_mapped(net, choice)} -- or create it there: ip link add {bridge} type bridge && "
            f"ip link set {bridge} up",
        )
    elif found.kind not in BRIDGES:
        yield NOT_BRIDGE.found(f"{wanted} on {there.name} is {found.kind or 'a physical interface'}, not a bridge.",
                               f"Map it to a bridge: --map-bridge {_mapped(net)}")
    elif (net.vlan or net.tagged) and not found.vlans:
        yield VLAN.found(f"{wanted} on {there.name} has no VLAN filtering, which lxc.net.{net.index} needs.",
                         f"On {there.name}: ip link set {bridge} type bridge vlan_filtering 1")


def _mapped(net: Net, bridge: str = "NAME") -> str:
    return shlex.quote(f"{net.link}={bridge}")


def _can_be_named(name: str) -> bool:
    """Whether --map-bridge accepts that name, which the destination has reported."""
    try:
        return bool(names.interface_name(name))
    except InvalidName:
        return False


def inside(case: Case) -> Iterator[Finding]:
    for interface in case.container.interfaces:
        if interface.kind not in DUMPABLE and interface.name not in IGNORED_NAMES:
            yield KIND.found(
                f"{case.container.name} has an interface {interface.name} of kind {interface.kind or 'physical'}.",
                f"Remove it in the container: {case.inside('ip', 'link', 'delete', 'dev', interface.name)} -- if every "
                "network namespace has it: sysctl net.core.fb_tunnels_only_for_init_net=1, and restart the "
                "container.",
            )


def _bridge(case: Case, there: HostFacts, net: Net) -> Interface | None:
    """The destination's bridge that a veth gets attached to; None if there is none, or for another type of network."""
    return net_addresses.interface(there, case.options.bridges.get(net.link, net.link)) if net.type == "veth" else None


def mtu(case: Case) -> Iterator[Finding]:
    there = case.destination
    if not there:
        return
    for net in case.container.config.nets:
        bridge = _bridge(case, there, net)
        own = next((entry for entry in case.container.interfaces if entry.name == net_addresses.name_inside(net)), None)
        if bridge and own and 0 < bridge.mtu < own.mtu:
            yield MTU.found(
                f"{bridge.name} on {there.name} has an MTU of {bridge.mtu}, but {own.name} in the container {own.mtu}.",
                f"On {there.name}: ip link set {shlex.quote(bridge.name)} mtu {own.mtu}",
            )


def subnet(case: Case) -> Iterator[Finding]:
    there = case.destination
    if not there:
        return
    for net in case.container.config.nets:
        bridge = _bridge(case, there, net)
        if bridge is None:
            continue
        for address in net_addresses.plain(net_addresses.own(case, net)):
            networks = [ip.network for ip in net_addresses.parsed(bridge.addresses) if ip.version == address.version]
            if networks and not any(address in network for network in networks):
                yield SUBNET.found(
                    f"{address} is in none of the networks of {bridge.name} on {there.name} "
                    f"({listed([str(network) for network in networks])}).",
                    "Make sure that the address is routed there, or map to another bridge with --map-bridge.",
                )


def to_ask(case: Case) -> dict[str, tuple[str, str, str]]:
    """The questions whose answers tell whether two bridges are one segment.

    Each has a name, such as `ADDRESS%BRIDGE`, and consists of an IPv4 address that the destination has on its bridge,
    the bridge here on which it must answer for it, and the MAC address with which it must.
    """
    found = {}
    for here, there in _bridges(case):
        mine = [ip for ip in net_addresses.parsed(here.addresses) if ip.version == 4]
        for ip in net_addresses.parsed(there.addresses):
            if any(ip.network == own.network for own in mine) and all(ip.ip != own.ip for own in mine):
                found[f"{ip.ip}%{here.name}"] = (str(ip.ip), here.name, there.mac)
    return found


def segments(case: Case) -> Iterator[Finding]:
    source, destination = case.source, case.destination
    for here, there in _bridges(case) if destination else ():
        if destination is None:
            return
        cure = f'Connect {source.name} and {destination.name} by one bridge: see "{SHARED}" in docs/guide.md.'
        if same := _same(here, there):
            yield NOT_SHARED.found(
                f"{here.name} on {source.name} and {there.name} on {destination.name} both have the address "
                f"{' and '.join(same)}: they are two networks that look like one, and open connections of "
                f"{case.container.name} will break.", cure)
        for address in net_addresses.plain(there.addresses):
            answered = case.options.answers.get(f"{address}%{here.name}")
            if answered is not None and answered != there.mac:
                whose = f"{answered}, not {there.mac}, answers" if answered else "nobody answers"
                yield NOT_SHARED.found(
                    f"On {here.name} of {source.name} {whose} for {address}, which {destination.name} has on "
                    f"{there.name}: these are two networks, and open connections of {case.container.name} "
                    "will break.", cure)


def _bridges(case: Case) -> list[tuple[Interface, Interface]]:
    """The pairs of bridges, here and there, that the container's veths leave and arrive at."""
    found = []
    for net in case.container.config.nets if case.destination else ():
        if case.destination and net.type == "veth" and net.link:
            here = net_addresses.interface(case.source, net.link)
            there = net_addresses.interface(case.destination, case.options.bridges.get(net.link, net.link))
            if here and there and here.kind in BRIDGES and there.kind in BRIDGES:
                found.append((here, there))
    return list(dict.fromkeys(found))


def _same(here: Interface, there: Interface) -> list[str]:
    """The addresses that both bridges have.

    None if both have the same MAC address, too, unless it is lxc-net's: then it is a gateway that is meant to be
    everywhere on one segment (anycast).
    """
    if here.mac == there.mac and here.mac not in LXC_NET_MACS:
        return []
    theirs = {str(ip) for ip in net_addresses.plain(there.addresses)}
    return [str(ip) for ip in net_addresses.plain(here.addresses) if str(ip) in theirs]


def addresses(case: Case) -> Iterator[Finding]:
    there = case.destination
    if not there:
        return
    mine = {str(ip) for ip in net_addresses.plain(net_addresses.all_own(case))}
    macs = {mac.lower() for mac in net_addresses.macs(case)}
    for interface in there.interfaces:
        for taken in sorted(mine & {str(ip) for ip in net_addresses.plain(interface.addresses)}):
            yield _taken(taken, f"{there.name} itself, on {interface.name}")
    for other in there.containers:
        if other.name == (case.options.name or case.container.name):
            continue
        for taken in sorted(mine & {str(ip) for ip in net_addresses.plain(other.addresses)}):
            state = "" if other.running else ", which is stopped"
            yield _taken(taken, f"the container {other.name} on {there.name}{state}",
                         ERROR if other.running else WARNING)
    for neighbour in there.neighbours:
        if neighbour.address in mine and neighbour.mac and macs and neighbour.mac.lower() not in macs:
            whose = f"{neighbour.mac}, which {there.name} has seen on {neighbour.interface}"
            yield _taken(neighbour.address, whose if neighbour.reachable else f"{whose} some time ago",
                         ERROR if neighbour.reachable else WARNING)


def _taken(address: str, whose: str, severity: Severity = ERROR) -> Finding:
    return ADDRESS_TAKEN.found(f"The address {address} belongs to {whose}.",
                               "Remove it there, or change the container's before the move.", severity=severity)


def hardware_addresses(case: Case) -> Iterator[Finding]:
    there = case.destination
    for mac in sorted(net_addresses.macs(case)) if there else ():
        if there is None:
            return
        for interface in there.interfaces:
            # The ends of a veth have the same address only if someone has set it so.
            if interface.mac.lower() == mac:
                yield MAC_TAKEN.found(f"{interface.name} on {there.name} also has the MAC {mac}.",
                                      f"Change it there: ip link set {shlex.quote(interface.name)} address ...")
        for other in there.containers:
            if mac in other.macs and other.name != (case.options.name or case.container.name):
                state = "" if other.running else ", which is stopped"
                yield MAC_TAKEN.found(f"The container {other.name} on {there.name}{state} also has the MAC {mac}.",
                                      "Change lxc.net.0.hwaddr of one of them.",
                                      severity=ERROR if other.running else WARNING)


def pairs(case: Case) -> Iterator[Finding]:
    there = case.destination
    for net in case.container.config.nets if there else ():
        if there and net.pair and net_addresses.interface(there, net.pair):
            yield PAIR_TAKEN.found(f"{there.name} already has an interface {net.pair}.",
                                   f"Remove lxc.net.{net.index}.veth.pair from the configuration; LXC picks a name.")


def leases(case: Case) -> Iterator[Finding]:
    configured = {str(ip) for net in case.container.config.nets for ip in net_addresses.plain(net.addresses)}
    for interface in case.container.interfaces:
        for address in net_addresses.plain(interface.addresses):
            if interface.kind == "veth" and str(address) not in configured:
                yield LEASE.found(f"{address} on {interface.name} is not in {case.container.name}'s configuration.",
                                  "If it is a DHCP lease, make sure that the destination's network gives the same one.")


CHECKS: tuple[Check, ...] = (
    types, silence, made, links, inside, mtu, subnet, segments, addresses, hardware_addresses, pairs, leases,
)
