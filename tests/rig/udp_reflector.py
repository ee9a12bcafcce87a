# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs on the rendezvous: tells who sends how it is seen from outside, and knocks from elsewhere when asked to.

Listens on two addresses, two ports each. `where` is answered with the sender's address; `knock` is answered from the
three other sockets, each with its own name, and then from the one that was asked.

    udp_reflector.py ADDRESS ADDRESS
"""

from __future__ import annotations

import itertools
import json
import selectors
import socket
import sys

PORTS = (4001, 4002)  # migrator's own rendezvous has the usual ones


def main() -> None:
    """Answer until killed."""
    ready = selectors.DefaultSelector()
    sockets = {}
    for address, port in itertools.product(sys.argv[1:], PORTS):
        sockets[address, port] = opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        opened.bind((address, port))
        ready.register(opened, selectors.EVENT_READ, (address, port))
    print("ready", flush=True)
    while True:
        for key, _ in ready.select():
            asked = sockets[key.data]
            word, sender = asked.recvfrom(100)
            if word == b"where":
                asked.sendto(json.dumps(sender).encode(), sender)
            elif word == b"knock":
                for (address, _), other in sockets.items():
                    if other is not asked:
                        kind = "address" if address != key.data[0] else "port"
                        other.sendto(f"other {kind}".encode(), sender)
                asked.sendto(b"done", sender)


if __name__ == "__main__":
    main()
