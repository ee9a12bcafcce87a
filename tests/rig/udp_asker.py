# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs behind a NAT: learns how the NAT maps one socket, and whom it lets in to another; prints that as JSON.

    udp_asker.py ADDRESS ADDRESS
"""

from __future__ import annotations

import json
import socket
import sys

PORTS = (4001, 4002)
PATIENCE = 0.5


def mapping(addresses: list[str]) -> list[object]:
    """How one socket is seen by each of the four; None where there is no answer."""
    found: list[object] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(PATIENCE)
        asking.bind(("", 0))
        for address in addresses:
            for port in PORTS:
                asking.sendto(b"where", (address, port))
                try:
                    found.append(json.loads(asking.recv(100)))
                except TimeoutError:
                    found.append(None)
    return found


def let_in(address: str) -> list[str]:
    """Who, beside the one that was sent to, gets through to a socket."""
    found = set()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(PATIENCE)
        asking.bind(("", 0))
        asking.sendto(b"knock", (address, PORTS[0]))
        try:
            while True:
                found.add(asking.recv(100).decode())
        except TimeoutError:
            return sorted(found)


if __name__ == "__main__":
    print(json.dumps({"mapping": mapping(sys.argv[1:]), "let_in": let_in(sys.argv[1])}))
