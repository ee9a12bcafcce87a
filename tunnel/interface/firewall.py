# SPDX-License-Identifier: GPL-2.0-or-later
"""What may come out of a session's tunnel: an nftables table of its own, in which everything else is dropped.

The peer is authenticated, yet all that it needs on this host is one TCP port, the echo and ICMPv6; and nobody else
needs this host's tunnel address. The rules keep no state, so they work without connection tracking and through a heal.
They only ever drop: what the host's own rules drop stays dropped.
"""

from __future__ import annotations

import ipaddress
import re

from migrator.base import process_id

NFT = "nft"
_NAME = re.compile(r"mig-[0-9a-f]{8}")
_ICMPV6 = "destination-unreachable, packet-too-big, time-exceeded, parameter-problem, echo-request, echo-reply"


def ruleset(name: str, *, local: str, remote: str, tcp_port: int, echo_port: int, listens: bool) -> str:
    """The table, as nft(8) reads it, for an interface of the same name.

    `listens`: whether this host listens on the TCP port; otherwise it only gets answers from the peer's.
    """
    _check(name)
    local, remote = (str(ipaddress.IPv6Address(address)) for address in (local, remote))
    # An answer has ACK or lacks SYN: the peer may not use its port to connect to any of ours.
    # What is left by then comes from this host's own users, who could fill the accept queue. Nothing of ours does that.
    own = f"\n        ip6 daddr {local} tcp dport {tcp_port:d} drop" if listens else ""
    tcp = f"tcp dport {tcp_port:d}" if listens else f"tcp sport {tcp_port:d} tcp flags & (syn | ack) != syn"
    return f"""\
table inet {name} {{
    chain input {{
        type filter hook input priority filter - 10; policy accept;
        iifname "{name}" goto from_tunnel
        ip6 daddr {local} iifname != "lo" drop{own}
    }}
    chain from_tunnel {{
        ip6 saddr != {remote} drop
        ip6 daddr != {local} drop
        {tcp} accept
        udp sport {echo_port:d} udp dport {echo_port:d} accept
        icmpv6 type {{ {_ICMPV6} }} accept
        drop
    }}
    chain forward {{
        type filter hook forward priority filter - 10; policy accept;
        iifname "{name}" drop
        oifname "{name}" drop
    }}
}}
"""


def removal(name: str) -> str:
    """What removes that table, without an error if there is none."""
    _check(name)
    return f"table inet {name}\ndelete table inet {name}\n"


def add(rules: str) -> None:
    """Load a ruleset; raises ProgramFailed."""
    process_id.run([NFT, "-f", "-"], given=rules)


def remove(name: str) -> None:
    """Remove a session's table if it is there; raises ProgramFailed."""
    if process_id.which(NFT) is None:
        return  # then there are no tables of ours either
    process_id.run([NFT, "-f", "-"], given=removal(name))


def _check(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!a} is not the interface of a session")
