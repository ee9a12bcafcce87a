# SPDX-License-Identifier: GPL-2.0-or-later
"""The tunnel's MTU: what is left of the path's once WireGuard and UDP have taken their share.

WireGuard over IPv4 adds 60 bytes to a packet, over IPv6 80. 1280 is the minimum for IPv6; if a path does not have room
for that, the kernel sends WireGuard's packets in fragments.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket

from tunnel.wireguard.common import Endpoint

MIN = 1280
MAX = 1420  # fits 1500 over IPv6; a heal may move from IPv4 to IPv6, and an MTU may not grow under a connection
OVERHEAD = {4: 20 + 8 + 32, 6: 40 + 8 + 32}  # IP, UDP, WireGuard's header and tag

# Sizes that are tried through the tunnel: Ethernet's, and multiples of 16, because WireGuard pads packets smaller than
# its MTU to such a multiple, and the padding would get them refused.
STEPS = (MAX, 1408, 1392, 1376, 1360, 1344, 1328, 1312, 1296, MIN)

_WAIT = 0.25  # seconds for a router on the way to say that a packet is too big
_ROUNDS = 4  # routers that each allow less than the one before

# From <linux/in.h> and <linux/in6.h>; the socket module lacks them.
_IP_MTU, _IPV6_MTU = 14, 24
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER = 10, 23
_PMTUDISC_DO = 2


def inside(path_mtu: int, address: str) -> int:
    """The tunnel's MTU over a path of `path_mtu` bytes to an endpoint's address."""
    return max(MIN, min(MAX, path_mtu - OVERHEAD[ipaddress.ip_address(address).version]))


def from_route(endpoint: Endpoint) -> int:
    """The MTU according to what the kernel knows now about the route to an endpoint; MIN if it knows no route."""
    try:
        with _connected(endpoint) as probe:
            return inside(_path_mtu(probe), endpoint[0])
    except OSError:
        return MIN


async def from_routers(endpoint: Endpoint) -> int:
    """The MTU after routers on the way have had the chance to refuse packets that may not be fragmented.

    It sends at most four datagrams of zeros, from a port of its own, to an endpoint that has answered before. If
    routers keep silent, the result is no better than that of `from_route`.
    """
    try:
        with _connected(endpoint) as probe:
            known = _path_mtu(probe)
            for _ in range(_ROUNDS):
                headers = OVERHEAD[ipaddress.ip_address(endpoint[0]).version] - 32
                with contextlib.suppress(OSError):  # too big by now, or refused there: the kernel has learnt something
                    probe.send(bytes(min(known, MAX + 80) - headers))
                await asyncio.sleep(_WAIT)
                before, known = known, _path_mtu(probe)
                if known >= before:
                    break
            return inside(known, endpoint[0])
    except OSError:
        return MIN


def _connected(endpoint: Endpoint) -> socket.socket:
    six = ipaddress.ip_address(endpoint[0]).version == 6
    probe = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        if six:
            probe.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_DO)
        else:
            probe.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DO)
        probe.connect(endpoint)
    except BaseException:
        probe.close()
        raise
    return probe


def _path_mtu(probe: socket.socket) -> int:
    if probe.family == socket.AF_INET6:
        return probe.getsockopt(socket.IPPROTO_IPV6, _IPV6_MTU)
    return probe.getsockopt(socket.IPPROTO_IP, _IP_MTU)
