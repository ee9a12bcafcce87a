# SPDX-License-Identifier: GPL-2.0-or-later
"""Who answers for an IPv4 address on a link: a probe as of RFC 5227, which leaves no trace in anybody's ARP table."""

from __future__ import annotations

import ipaddress
import select
import socket
import struct
import time

from migrator import log

ETH_ARP = 0x0806
REQUEST, REPLY = 1, 2
PROBES = (0.0, 0.1, 0.3, 0.7, 1.5)  # seconds from the first: an answer takes a millisecond, but any of them may be lost
LIMIT = 2.5  # seconds from the first
FRAMES_MAX = 10_000  # that are looked at between two probes
_FRAME = struct.Struct("!6s6sHHHBBH6s4s6s4s")


def probe(mac: bytes, address: ipaddress.IPv4Address) -> bytes:
    """The question, as an Ethernet frame: from hardware address `mac`, and from no address."""
    return _FRAME.pack(b"\xff" * 6, mac, ETH_ARP, 1, 0x0800, 6, 4, REQUEST, mac, bytes(4), bytes(6), address.packed)


def answer(frame: bytes, address: ipaddress.IPv4Address) -> str:
    """The hardware address that answers for `address` in this frame; "" when it is no such answer."""
    if len(frame) < _FRAME.size:
        return ""
    _, _, kind, hardware, protocol, _, _, operation, sender, sender_address, _, _ = _FRAME.unpack_from(frame)
    if (kind, hardware, protocol, operation) != (ETH_ARP, 1, 0x0800, REPLY) or sender_address != address.packed:
        return ""
    return str(sender.hex(":"))


def who_has(address: str, interface: str) -> str | None:
    """The hardware address that answers for an IPv4 address on the link of `interface`, "" when nobody does.

    Takes LIMIT seconds when nobody does. None where it could not be asked.
    """
    wanted = ipaddress.IPv4Address(address)
    try:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_ARP)) as link:
            link.bind((interface, ETH_ARP))
            question = probe(link.getsockname()[4], wanted)
            begun = time.monotonic()
            for until in (*PROBES[1:], LIMIT):
                link.send(question)
                if found := _listen(link, wanted, begun + until):
                    return found
    except OSError as error:
        log.debug(f"nobody could be asked for {address} on {interface}: {error}")
        return None
    return ""


def _listen(link: socket.socket, wanted: ipaddress.IPv4Address, until: float) -> str:
    """Look at what has come already, and at what comes until then (time.monotonic())."""
    for _ in range(FRAMES_MAX):
        if not select.select([link], [], [], max(0.0, until - time.monotonic()))[0]:
            break
        if found := answer(link.recv(2048), wanted):
            return found
    return ""
