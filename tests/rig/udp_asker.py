# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs behind a NAT: learns how the NAT maps one socket, and whom it lets in to another; prints that as JSON.

    udp_asker.py ADDRESS ADDRESS
"""

from __future__ import annotations

import itertools
import json
import socket
import sys

PORTS = (4001, 4002)
PATIENCE = 4.0  # seconds; the machine may be busy, and only behind a router that lets nothing through is it used up
AFTERWARDS = 0.5  # seconds, for what was sent before the last answer


def mapping(addresses: list[str]) -> list[object]:
    """How one socket is seen by each of the four; None where there is no answer."""
    found: dict[tuple[str, int], object] = dict.fromkeys(itertools.product(addresses, PORTS))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(PATIENCE)
        asking.bind(("", 0))
        for asked in found:
            asking.sendto(b"where", asked)
        try:
            while None in found.values():
                data, sender = asking.recvfrom(100)
                found[sender] = json.loads(data)
        except TimeoutError:
            pass
    return list(found.values())


def let_in(address: str) -> list[str]:
    """Who, beside the one that was sent to, gets through to a socket."""
    found = set()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(PATIENCE)
        asking.bind(("", 0))
        asking.sendto(b"knock", (address, PORTS[0]))
        try:
            while True:
                data, sender = asking.recvfrom(100)
                if sender == (address, PORTS[0]):  # which says that the others have knocked
                    asking.settimeout(AFTERWARDS)
                else:
                    found.add(data.decode())
        except TimeoutError:
            return sorted(found)


if __name__ == "__main__":
    print(json.dumps({"mapping": mapping(sys.argv[1:]), "let_in": let_in(sys.argv[1])}))
