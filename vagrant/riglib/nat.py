# SPDX-License-Identifier: GPL-2.0-or-later
"""The NAT types of the rig's routers, as nftables rules.

| type               | mapping                   | who may send to the mapping                        |
| ------------------ | ------------------------- | -------------------------------------------------- |
| full-cone          | one for all destinations  | everybody                                          |
| address-restricted | one for all destinations  | addresses that were sent to                        |
| port-restricted    | one for all destinations  | addresses and ports that were sent to              |
| symmetric          | one for each destination  | the destination                                    |
| double             | port-restricted, twice in a row                                                |
| blocked            | no UDP at all; TCP as with port-restricted                                     |

A real router usually drops unexpected packets. One that does not (`TYPE,no-input-drop`) lets a peer's first packet
create a conntrack entry of its own, which moves the outbound mapping to another port: tunnels have to cope with both.
"""

from dataclasses import dataclass

from riglib.errors import RigError

KINDS = ("none", "full-cone", "address-restricted", "port-restricted", "symmetric", "double", "blocked")
NO_INPUT_DROP = "no-input-drop"


@dataclass(frozen=True)
class Nat:
    """A NAT type as given on the command line."""

    kind: str
    input_drop: bool = True

    def __str__(self) -> str:
        return self.kind if self.input_drop else f"{self.kind},{NO_INPUT_DROP}"


NONE = Nat("none")


def parse(text: str) -> Nat:
    """Read `TYPE` or `TYPE,no-input-drop`."""
    kind, *options = text.split(",")
    if kind not in KINDS:
        raise RigError(f"unknown NAT type '{kind}'", hint=f"one of {', '.join(KINDS)}")
    if unknown := [option for option in options if option != NO_INPUT_DROP]:
        raise RigError(f"unknown NAT option '{unknown[0]}'", hint=f"{kind},{NO_INPUT_DROP}")
    return Nat(kind, input_drop=not options)


def router_rules(nat: Nat) -> str:
    """Return the rules of a router between lan0 and wan0."""
    filtering = []
    if nat.input_drop:
        filtering.append(
            chain("input", "filter hook input priority filter", 'iifname "wan0" udp dport 1024-65535 drop')
        )
    if nat.kind == "blocked":
        filtering.append(chain("forward", "filter hook forward priority filter", "meta l4proto udp drop"))
    return "\n".join(["flush ruleset", "table ip rig {", *cone(nat.kind), masquerade(nat.kind), *filtering, "}", ""])


def chain(name: str, hook: str, rule: str) -> str:
    """Return a chain with one rule."""
    return f"chain {name} {{ type {hook}; {rule}; }}"


def masquerade(kind: str) -> str:
    """Return the chain that gives outgoing packets the router's address.

    Plain masquerade keeps the port if that is free.
    """
    how = "masquerade fully-random" if kind == "symmetric" else "masquerade"
    return chain("out", "nat hook postrouting priority srcnat", f'oifname "wan0" {how}')


def cone(kind: str) -> list[str]:
    """Return what makes a masquerading router a cone: it learns which inside address uses a port; lets others in."""
    if kind not in ("full-cone", "address-restricted"):
        return []
    learn = "update @mapped { udp sport : ip saddr }"
    allowed = ""
    sets = ["map mapped { type inet_service : ipv4_addr; flags dynamic, timeout; timeout 300s; size 65535; }"]
    if kind == "address-restricted":
        sets.append("set spoken { type ipv4_addr . inet_service; flags dynamic, timeout; timeout 300s; size 65535; }")
        learn += " update @spoken { ip daddr . udp sport }"
        allowed = "ip saddr . udp dport @spoken "
    return [
        *sets,
        # Before masquerade changes it, the source address is the inside one. A chain of type nat sees only the first
        # packet of a flow; a filter chain sees them all, and each one keeps the mapping alive.
        chain("learn", "filter hook postrouting priority srcnat - 10", f'oifname "wan0" meta l4proto udp {learn}'),
        chain("in", "nat hook prerouting priority dstnat", f'iifname "wan0" {allowed}dnat to udp dport map @mapped'),
    ]


def host_rules() -> str:
    """Return the rules of an LXC host with a private lxcbr0: its containers reach the outside through its address."""
    return "\n".join(
        [
            "flush ruleset",
            "table ip rig {",
            chain("out", "nat hook postrouting priority srcnat", 'ip saddr 10.0.3.0/24 oifname "eth0" masquerade'),
            "}",
            "",
        ]
    )
