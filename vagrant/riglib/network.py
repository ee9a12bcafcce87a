# SPDX-License-Identifier: GPL-2.0-or-later
"""The network between the hosts. Every link is made inside the rig's namespaces; the machine's own is never touched.

Without NAT all hosts share one L2 segment, so that a container's address can move:

    hosta (lxcbr0) ── hostb (lxcbr0) ── client ── rendezvous          10.0.3.0/24, fd00:3::/64

As soon as one of the LXC hosts is behind a NAT, each has a private lxcbr0, and the segment is the outer network:

    hosta ── [nata2 ──] nata ──┬── natb [── natb2] ── hostb           10.1.0.0/24 and 10.2.0.0/24 inside
                     client ───┴─── rendezvous                        198.51.100.0/24 and 203.0.113.0/24 outside
"""

from collections.abc import Sequence
from dataclasses import dataclass

from riglib.errors import RigError
from riglib.hosts import LXC_HOSTS
from riglib.nat import NONE, Nat, host_rules, router_rules
from riglib.run import inside, run

LAN_NETWORK = "10.0.3"
README_NETWORK = "192.0.2"
"""The segment for hosts by the README: Debian's lxc-net takes 10.0.3.0/24 for itself."""
LAN = {"hosta": 2, "hostb": 3, "client": 4, "rendezvous": 5}
WAN = {
    "nata": "198.51.100.2",
    "natb": "203.0.113.2",
    "hosta": "198.51.100.3",
    "hostb": "203.0.113.3",
    "client": "198.51.100.4",
    "rendezvous": "198.51.100.5",
}
"""Outside addresses; hosta's and hostb's are used if that host is not behind a NAT while the other is."""
RENDEZVOUS_SECOND = "203.0.113.5"
WAN_NETWORKS = ("198.51.100.0/24", "203.0.113.0/24")
BRIDGE = "forward_delay 0 stp_state 0 mcast_snooping 0"
INSIDE = {"hosta": 1, "hostb": 2}
ROUTER = {"hosta": "nata", "hostb": "natb"}


@dataclass(frozen=True)
class Port:
    """One end of a link: the host, the interface's name in it."""

    host: str
    interface: str


@dataclass
class Plan:
    """What has to be done, as data: links, then ip(8) lines per host, then nftables rules per host."""

    links: list[tuple[Port, Port]]
    lines: dict[str, list[str]]
    rules: dict[str, str]
    addresses: dict[str, list[str]]

    def link(self, one: Port, other: Port) -> None:
        """Connect two ports."""
        self.links.append((one, other))

    def add(self, host: str, *lines: str) -> None:
        """Add ip(8) lines for one host."""
        self.lines.setdefault(host, []).extend(lines)


def plan(nat_a: Nat = NONE, nat_b: Nat = NONE, *, by_readme: bool = False) -> Plan:
    """Return the network for these NAT types; hosts by the README get their links but no bridges."""
    made = Plan([], {}, {}, {})
    made.add("switch", f"link add sw type bridge {BRIDGE}", "link set sw up")
    if nat_a.kind == nat_b.kind == "none":
        plan_lan(made, README_NETWORK if by_readme else LAN_NETWORK, bridges=not by_readme)
    else:
        plan_wan(made, {"hosta": nat_a, "hostb": nat_b}, bridges=not by_readme)
    return made


def plug(made: Plan, host: str) -> None:
    """Connect a host's eth0 to the switch."""
    made.link(Port("switch", host), Port(host, "eth0"))
    made.add("switch", f"link set {host} master sw up")
    made.add(host, "link set eth0 up")


def plan_lan(made: Plan, net: str, *, bridges: bool) -> None:
    """One L2 segment for all. Without bridges the LXC hosts get no addresses: by_readme.py sets them."""
    for host, number in LAN.items():
        plug(made, host)
        made.addresses[host] = [f"{net}.{number}", f"fd00:3::{number}"] if bridges else [f"{net}.{number}"]
        if host in LXC_HOSTS and not bridges:
            continue
        if host in LXC_HOSTS:
            made.add(host, *bridge_lines(f"{net}.{number}/24", f"fd00:3::{number}/64"), "link set eth0 master lxcbr0")
        else:
            made.add(host, f"address add {net}.{number}/24 dev eth0")
            made.add(host, f"address add fd00:3::{number}/64 dev eth0 nodad")


def plan_wan(made: Plan, nats: dict[str, Nat], *, bridges: bool) -> None:
    """An outer network, and the LXC hosts behind their routers."""
    for host in ("client", "rendezvous"):
        plug(made, host)
        made.add(host, *outside_lines(WAN[host], "eth0"))
        made.addresses[host] = [WAN[host]]
    made.add("rendezvous", f"address add {RENDEZVOUS_SECOND}/24 dev eth0")
    for host, nat in nats.items():
        if bridges:
            made.add(host, *bridge_lines("10.0.3.1/24", "fd00:3::1/64"))
            made.rules[host] = host_rules()
        if nat.kind == "none":
            plug(made, host)
            made.add(host, *outside_lines(WAN[host], "eth0"))
            made.addresses[host] = [WAN[host]]
        else:
            plan_router(made, host, nat)


def plan_router(made: Plan, host: str, nat: Nat) -> None:
    """One host behind its router, or behind two in a row."""
    router, net = ROUTER[host], f"10.{INSIDE[host]}.0"
    made.link(Port("switch", router), Port(router, "wan0"))
    made.add("switch", f"link set {router} master sw up")
    made.add(router, "link set wan0 up", *outside_lines(WAN[router], "wan0"))
    made.rules[router] = router_rules(nat)
    nearest = router
    if nat.kind == "double":
        nearest, middle = f"{router}2", f"100.64.{INSIDE[host]}"
        made.link(Port(router, "lan0"), Port(nearest, "wan0"))
        made.add(router, "link set lan0 up", f"address add {middle}.1/24 dev lan0")
        made.add(nearest, "link set wan0 up", f"address add {middle}.2/24 dev wan0")
        made.add(nearest, f"route add default via {middle}.1")
        made.rules[nearest] = router_rules(nat)
    made.link(Port(nearest, "lan0"), Port(host, "eth0"))
    made.add(nearest, "link set lan0 up", f"address add {net}.1/24 dev lan0")
    made.add(host, "link set eth0 up", f"address add {net}.2/24 dev eth0")
    made.add(host, f"route add default via {net}.1")
    made.addresses[host] = [f"{net}.2"]
    made.addresses[router] = [WAN[router]]


def bridge_lines(address: str, address6: str) -> list[str]:
    """Return the lines that make lxcbr0, as `provision.sh bridge` does on a virtual machine."""
    return [
        f"link add lxcbr0 type bridge {BRIDGE}",
        f"address add {address} dev lxcbr0",
        f"address add {address6} dev lxcbr0 nodad",
        "link set lxcbr0 up",
    ]


def outside_lines(address: str, interface: str) -> list[str]:
    """Return the lines that give an outside address; both outside networks are on the same wire."""
    other = next(net for net in WAN_NETWORKS if not address.startswith(net[: net.rindex(".")]))
    return [f"address add {address}/24 dev {interface}", f"route add {other} dev {interface}"]


def build(made: Plan, pids: dict[str, int], machines: Sequence[str] = ()) -> None:
    """Make the network inside the running hosts; `machines` are those in which machines.py does its part."""
    # A link is created with each end in its namespace: `ip` has to know the other's pid, so it runs in the machine's
    # pid namespace.
    links: dict[str, list[str]] = {}
    for one, other in made.links:
        line = f"link add {one.interface} type veth peer name {other.interface} netns {pids[other.host]}"
        links.setdefault(one.host, []).append(line)
    for host, lines in links.items():
        ip(host, pids, lines)
    for host, lines in made.lines.items():
        if host not in machines:
            ip(host, pids, lines)
    for host, rules in made.rules.items():
        if host in machines:
            continue
        inside(host, ["sysctl", "-q", "net.ipv4.ip_forward=1"])
        inside(host, ["nft", "-f", "-"], text=rules)


def ip(host: str, pids: dict[str, int], lines: list[str]) -> None:
    """Run ip(8) lines in a host's network namespace."""
    run(["nsenter", "--net", "-t", str(pids[host]), "ip", "-batch", "-"], text="\n".join(lines) + "\n")


def shape(made: Plan, pids: dict[str, int], mbit: int) -> None:
    """Limit both directions of hosta's and hostb's links with token buckets: not every kernel has netem."""
    for one, other in made.links:
        if other.host in LXC_HOSTS:
            for port in (one, other):
                # Enough for one offloaded segment, or for 10 ms at this rate.
                burst = max(mbit * 1250, 128 * 1024)
                shaper = ["tc", "qdisc", "replace", "dev", port.interface, "root", "tbf"]
                limits = ["rate", f"{mbit}mbit", "burst", str(burst), "latency", "50ms"]
                run(["nsenter", "--net", "-t", str(pids[port.host]), *shaper, *limits])


def check_mbit(mbit: int) -> None:
    """Refuse a rate that cannot be shaped."""
    if not 1 <= mbit <= 100_000:
        raise RigError(f"--mbit {mbit} is out of range", hint="1 to 100000")
