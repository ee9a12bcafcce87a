# SPDX-License-Identifier: GPL-2.0-or-later
"""What the service inside a tunnel needs of one; both ends are this host."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import socket

SECRET = b"s" * 32


@dataclasses.dataclass
class Peer:
    name: str = "attic"


@dataclasses.dataclass
class FakeTunnel:
    """What the service needs of a tunnel; both ends are this host."""

    port: int
    secret: bytes = SECRET
    local_address: str = "::1"
    remote_address: str = "::1"
    peer: Peer = dataclasses.field(default_factory=Peer)


def free_port() -> int:
    """A free port that no connection gets by chance until it is listened on: below net.ipv4.ip_local_port_range."""
    while True:
        port = random.randrange(10_000, 32_768)
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock, contextlib.suppress(OSError):
            sock.bind(("::1", port))
            return port
