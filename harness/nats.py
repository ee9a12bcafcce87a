# SPDX-License-Identifier: GPL-2.0-or-later
"""Two paired hosts behind NATs whose type can be changed while the rig runs, and a router between them.

The rig comes up with two routers in a row on each side that has a NAT; for a single NAT the inner one only forwards.
The rig's outside networks are one wire. Here the switch routes between them, as the internet does: only then is there
a place between the two hosts' routers where a packet with a small TTL can expire.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from typing import Any

from harness.rig import VAGRANT, Rig, wait_for

OUTSIDE = {"a": "198.51.100", "b": "203.0.113"}
CODE = re.compile(r"\d+-[a-z]+-[a-z]+")
INITIATOR, RESPONDER = "hosta", "hostb"

_HOP = """
ip address replace 198.51.100.1/24 dev sw
ip address replace 203.0.113.1/24 dev sw
sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.sw.send_redirects=0
"""


class Nats:
    """A rig whose hosts are behind NATs, or not; `set` changes the type of those that are."""

    def __init__(self, rig: Rig, *, a: bool = True, b: bool = True) -> None:
        """Bring the rig up, with a NAT on side a and on side b, and pair the hosts."""
        self.rig = rig
        self._behind: dict[str, bool] = {"a": a, "b": b}
        self._kinds: dict[str, str] = {}
        self.up()
        if a or b:
            self._route()
        pair(rig)

    def up(self) -> None:
        """Start whatever is not running."""
        kinds = {side: "double" if behind else "none" for side, behind in self._behind.items()}
        self.rig.up("--nat-a", kinds["a"], "--nat-b", kinds["b"])

    def _route(self) -> None:
        self.rig.sh("switch", _HOP)
        for side, behind in self._behind.items():
            other = OUTSIDE["b" if side == "a" else "a"]
            self.rig.sh(f"nat{side}" if behind else f"host{side}",
                        f"ip route replace {other}.0/24 via {OUTSIDE[side]}.1")
            if behind:
                number = 1 if side == "a" else 2
                self.rig.sh(f"nat{side}", f"ip route replace 10.{number}.0.0/24 via 100.64.{number}.2")
        self.rig.sh("client", f"ip route replace {OUTSIDE['b']}.0/24 via {OUTSIDE['a']}.1")

    def set(self, side: str, kind: str) -> None:
        """Give a side that has a NAT another type of it, in the form that `rig up --nat-a` takes."""
        assert self._behind[side] != (kind == "none"), "that needs a rig of its own"
        if kind in ("none", self._kinds.get(side)):
            return
        self._kinds[side] = kind
        rules = router_rules(kind)
        self.rig.exec(f"nat{side}", "nft", "-f", "-", input=rules)
        inner = rules if kind.startswith("double") else "flush ruleset\n"
        self.rig.exec(f"nat{side}2", "nft", "-f", "-", input=inner)

    def rebind(self, side: str) -> None:
        """Give a side's outer router another address: every mapping and every connection through it is gone."""
        old, new, other = f"{OUTSIDE[side]}.2/24", f"{OUTSIDE[side]}.22/24", OUTSIDE["b" if side == "a" else "a"]
        now = self.rig.sh(f"nat{side}", "ip -4 -o address show dev wan0")
        if new in now:
            old, new = new, old
        self.rig.sh(f"nat{side}", f"""
            sysctl -qw net.ipv4.conf.all.promote_secondaries=1 net.ipv4.conf.wan0.promote_secondaries=1
            ip address add {new} dev wan0 && ip address del {old} dev wan0
            ip route replace {other}.0/24 via {OUTSIDE[side]}.1""")

    @contextlib.contextmanager
    def agent(self, *options: str) -> Iterator[Any]:
        """`migrator agent` on the responder, ready to be rung."""
        with self.rig.start(RESPONDER, "migrator", "agent", "-v", *options) as running:
            wait_for(lambda: "waiting at" in running.stderr, "an agent that waits")
            yield running
            running.signal(15)
            with contextlib.suppress(Exception):
                running.wait(60)

    def tunnel(self, action: str, *options: str) -> dict[str, Any]:
        """What `migrator tunnel ACTION` prints on the initiator; with `error` if it failed."""
        told: dict[str, Any] = self.rig.migrator(INITIATOR, "tunnel", action, RESPONDER, "--json", *options).json
        return told


def pair(rig: Rig) -> None:
    """Pair both hosts over the rendezvous, unless they are."""
    if rig.migrator(INITIATOR, "peer", "list", "--json").expect(0).json["peers"]:
        return
    with rig.start(INITIATOR, "migrator", "peer", "invite", "--name", RESPONDER) as invite:
        wait_for(lambda: CODE.match(invite.stdout), "a code")
        rig.migrator(RESPONDER, "peer", "join", invite.stdout.split()[0], "--name", INITIATOR,
                     "--allow", "receive").expect(0)
        invite.wait().expect(0)


def router_rules(kind: str) -> str:
    """The rig's own rules for this type of NAT."""
    sys.path.insert(0, str(VAGRANT))
    try:
        from riglib import nat as types
    finally:
        sys.path.pop(0)
    return types.router_rules(types.parse(kind))
