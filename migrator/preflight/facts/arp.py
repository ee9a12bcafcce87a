# SPDX-License-Identifier: GPL-2.0-or-later
"""Who answers for an IPv4 address on a link: a probe as in RFC 5227, which leaves no trace in anybody's ARP table."""

from __future__ import annotations

import ipaddress
import select
import socket
import struct
import time

from migrator.base import log

ETH_ARP = 0x0806
REQUEST, REPLY = 1, 2
# Seconds from the first: an answer takes a millisecond, but any of them may get lost.
PROBES = (0.0, 0.1, 0.3, 0.7, 1.5)
LIMIT = 2.5  # seconds from the first
FRAMES_MAX = 10_000  # frames that are looked at between two probes
_FRAME = struct.Struct("!6s6sHHHBBH6s4s6s4s")


def probe(mac: bytes, address: ipaddress.IPv4Address) -> bytes:
    """The question, as an Ethernet frame: from the MAC address `mac`, and from no IP address."""
    return _FRAME.pack(b"\xff" * 6, mac, ETH_ARP, 1, 0x0800, 6, 4, REQUEST, mac, bytes(4), bytes(6), address.packed)


def answer(frame: bytes, address: ipaddress.IPv4Address) -> str:
    """The MAC address that answers for `address` in this frame; "" if it is not such an answer."""
    if len(frame) < _FRAME.size:
        return ""
    _, _, kind, hardware, protocol, _, _, operation, sender, sender_address, _, _ = _FRAME.unpack_from(frame)
    if (kind, hardware, protocol, operation) != (ETH_ARP, 1, 0x0800, REPLY) or sender_address != address.packed:
        return ""
    return str(sender.hex(":"))


def who_has(address: str, interface: str, expected: str) -> str | None:
    """The MAC address that answers for an IPv4 address on the link of `interface`; "" if nobody does.

    It is the `expected` one if that is among those that answer, else another: a host answers for any of its addresses
    on any of its interfaces, so the first answer need not be the only one. Takes LIMIT seconds if the expected one does
    not answer. None if the question could not be asked.
    """
    wanted, other = ipaddress.IPv4Address(address), ""
    try:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_ARP)) as link:
            link.bind((interface, ETH_ARP))
            question = probe(link.getsockname()[4], wanted)
            begun = time.monotonic()
            for until in (*PROBES[1:], LIMIT):
                link.send(question)
                found = _listen(link, wanted, expected, begun + until)
                if found == expected:
                    return found
                other = found or other
    except OSError as error:
        log.debug(f"nobody could be asked for {address} on {interface}: {error}")
        return None
    return other


def _listen(link: socket.socket, wanted: ipaddress.IPv4Address, expected: str, until: float) -> str:
    """Who answers in what has already come, and in what comes until then (time.monotonic())."""
    other = ""
    for _ in range(FRAMES_MAX):
        if not select.select([link], [], [], max(0.0, until - time.monotonic()))[0]:
            break
        if found := answer(link.recv(2048), wanted):
            if found == expected:
                return found
            other = found
    return other
