# SPDX-License-Identifier: GPL-2.0-or-later
"""One real WireGuard tunnel between the rig's two hosts: what gets through, and what does not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.rig import Rig, wait_for
from tests.rig.tunnel_ends import (
    ADDRESSES,
    FORWARD,
    HERE,
    HOLDER,
    End,
    connects,
    counted,
    dropped,
    left,
    listening,
    shut,
    tunnel,
    udp,
)

Ends = tuple[End, End]


@pytest.fixture(scope="module")
def ends(rig: Rig) -> Iterator[Ends]:
    """The initiator on hosta and the responder on hostb, for all these tests."""
    for host in ADDRESSES:
        rig.put(host, HERE, HOLDER.read_text())
    assert left(rig) == []
    with tunnel(rig) as both:
        yield both
    assert left(rig) == []


def ping(rig: Rig, address: str, count: int = 1) -> None:
    """Through the tunnel, behind all that was sent before."""
    rig.exec("hosta", "ping", "-c", str(count), "-i", "0.1", "-W", "60", address)


def tunes_to(end: End, mtu: int) -> None:
    """It finds this MTU; a smaller one only while the machine is busy and echoes are late, a larger one never."""
    def found() -> bool:
        size: int = end.ask("tune", "tuned")["mtu"]
        assert size <= mtu
        return size == mtu

    wait_for(found, f"{end.host} finds an MTU of {mtu}: {end.running.stdout}")


def test_it_carries(rig: Rig, ends: Ends) -> None:
    ours, theirs = ends
    assert ours.up["name"] == theirs.up["name"]
    assert (ours.up["local"], ours.up["remote"]) == (theirs.up["remote"], theirs.up["local"])
    for end in ends:
        tunes_to(end, 1420)
    ping(rig, ours.up["remote"], 3)
    wait_for(lambda: ours.ask("measure", "measured")["mbit_s"], "data arrives, and how much is measured")
    stats = ours.ask("stats", "stats")
    assert stats["endpoint"] == ["10.0.3.3", 40002] and stats["last_handshake"] > 0 and stats["tx_bytes"] > 0
    # Nothing but the two addresses is on the way: no link-local ones, no other route.
    assert "fe80" not in rig.sh("hosta", f"ip -6 address show dev {ours.up['name']}")


def test_one_tcp_port_and_nothing_else(rig: Rig, ends: Ends) -> None:
    ours, theirs = ends
    here, there, port = ours.up["local"], ours.up["remote"], ours.up["port"]
    with listening(rig, "hostb", port, 45001), listening(rig, "hosta", 45001):
        connects(rig, "hosta", there, port)
        shut(rig, "hosta", (there, 45001), (there, 22))  # sshd
        shut(rig, "hostb", (here, 45001))  # there is no way back
        # Users of the host that listens do not, at that address: they could fill its queue.
        shut(rig, "hostb", (there, port))
        # Who is on the same network as a host does not reach its tunnel address.
        rig.sh("client", f"ip -6 route replace {there} via fd00:3::3 dev eth0")
        shut(rig, "client", (there, port))
        rig.sh("client", f"ip -6 route del {there}")
    # Not even from the listener's port, once that is free, may a connection be made.
    with listening(rig, "hosta", 45001):
        shut(rig, "hostb", (here, 45001), source=port)
    # UDP other than from echo port to echo port, seen behind the firewall of the tunnel.
    with counted(rig, "hostb", theirs.up["name"], "input", f"udp sport != {ours.up['echo']}") as count:
        udp(rig, "hosta", there, 45001)
        udp(rig, "hosta", there, ours.up["echo"])
        ping(rig, there)
        assert count() == 0


def test_the_mtu_is_what_the_path_carries(rig: Rig, ends: Ends) -> None:
    ours, theirs = ends
    with dropped(rig, "hostb", "udp dport 40002 meta length > 1400"):  # as a router that says nothing
        tunes_to(ours, 1328)
        assert " mtu 1328 " in rig.sh("hosta", f"ip link show dev {ours.up['name']}")
        tunes_to(theirs, 1420)  # the other direction is as it was
    tunes_to(ours, 1420)
    rig.sh("hosta", "ip route replace 10.0.3.3/32 dev lxcbr0 mtu 1350")  # as a router that has said it
    try:
        tunes_to(ours, 1290)
        wait_for(lambda: ours.ask("measure", "measured")["mbit_s"], "data arrives")
    finally:
        rig.sh("hosta", "ip route del 10.0.3.3/32 dev lxcbr0")
    tunes_to(ours, 1420)


def test_the_endpoint_moves_to_a_relay_and_back_under_a_live_tunnel(rig: Rig, ends: Ends) -> None:
    ours, theirs = ends
    client = rig.sh("client", "ip -4 -o address show dev eth0 | sed 's/.* inet //; s,/.*,,'").strip()
    with rig.start("client", "python3", "-c", FORWARD, "40003", ADDRESSES["hostb"], "40002") as relay:
        wait_for(lambda: relay.stdout, "the relay is there")
        deaths = len(ours.events("dead"))
        with dropped(rig, "hostb", "ip saddr 10.0.3.2 udp dport 40002"), \
                dropped(rig, "hosta", "ip saddr 10.0.3.3 udp dport 40001"):
            wait_for(lambda: len(ours.events("dead")) > deaths, "the path is dead")
            ours.ask(f"endpoint {client} 40003", "moved")
            ping(rig, ours.up["remote"], 5)
            assert ours.ask("stats", "stats")["endpoint"] == [client, 40003]
            assert theirs.ask("stats", "stats")["endpoint"][0] == client  # it followed
        # Back, while packets are still under way through the relay.
        ours.ask("endpoint 10.0.3.3 40002", "moved")
        ping(rig, ours.up["remote"], 5)
        wait_for(lambda: ours.ask("stats", "stats")["endpoint"] == ["10.0.3.3", 40002]
                 and theirs.ask("stats", "stats")["endpoint"] == ["10.0.3.2", 40001], "both are direct")
    ping(rig, ours.up["remote"], 5)  # and stay so, without the relay


# --- With a peer that tries: what it may send is its own affair, from here on ---


@pytest.fixture(scope="module")
def unruly(rig: Rig, ends: Ends) -> End:
    """hosta sends whatever it likes into the tunnel."""
    name = ends[0].up["name"]
    rig.sh("hosta", f"wg set {name} peer $(wg show {name} peers) allowed-ips ::/0")
    return ends[0]


def test_nothing_is_forwarded_even_for_a_peer_that_tries(rig: Rig, unruly: End, ends: Ends) -> None:
    name = unruly.up["name"]
    rig.sh("hosta", f"ip -6 route add fd00:9::/64 dev {name}; ip -6 route add fd00:3::3/128 dev {name}")
    rig.sh("hostb", "ip -6 route add fd00:9::/64 dev lxcbr0")
    before = rig.sh("hostb", "sysctl -n net.ipv6.conf.all.forwarding").strip()
    rig.sh("hostb", "sysctl -qw net.ipv6.conf.all.forwarding=1")
    table = rig.sh("hostb", f"nft list table inet {name}")
    try:
        with counted(rig, "hostb", name, "forward", "udp dport 45001") as count:
            udp(rig, "hosta", "fd00:9::1", 45001)
            ping(rig, unruly.up["remote"])
            assert count() == 0
            rig.sh("hostb", f"nft delete table inet {name}")
            udp(rig, "hosta", "fd00:9::1", 45001)
            wait_for(lambda: count() > 0, "some come through")  # so it was the table that stopped them
    finally:
        rig.exec("hostb", "nft", "-f", "-", input=table)
        rig.sh("hostb", f"sysctl -qw net.ipv6.conf.all.forwarding={before}")
        rig.sh("hostb", "ip -6 route del fd00:9::/64 dev lxcbr0")
        rig.sh("hosta", f"ip -6 route del fd00:9::/64 dev {name}; ip -6 route del fd00:3::3/128 dev {name}")


def test_a_host_is_reached_at_its_tunnel_address_only(rig: Rig, unruly: End) -> None:
    name = unruly.up["name"]
    rig.sh("hosta", f"ip -6 route add fd00:3::3/128 dev {name}")
    with listening(rig, "hostb", unruly.up["port"]):
        shut(rig, "hosta", ("fd00:3::3", unruly.up["port"]), local=unruly.up["local"])
        rig.sh("hosta", f"ip -6 route del fd00:3::3/128 dev {name}")
        connects(rig, "hosta", "fd00:3::3", unruly.up["port"])
