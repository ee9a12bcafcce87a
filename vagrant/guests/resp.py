# SPDX-License-Identifier: GPL-2.0-or-later
"""As much of the Redis protocol as the rig needs, over one connection that is never replaced."""

import socket


class Connection:
    """One TCP connection to a Redis server."""

    def __init__(self, host: str, port: int = 6379, *, timeout: float = 30) -> None:
        self.socket = socket.create_connection((host, port), timeout=timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.socket.makefile("rb")

    def send(self, *words: bytes | str | int) -> None:
        """Send one command."""
        self.socket.sendall(encode(*words))

    def receive(self) -> bytes | int | None:
        """Return the next answer; raises OSError if the connection is gone or no answer comes in time."""
        line = self.file.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionResetError("the server closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"$":
            if rest == b"-1":
                return None
            return self.file.read(int(rest) + 2)[:-2]
        if kind == b":":
            return int(rest)
        if kind == b"-":
            raise ValueError(rest.decode())
        return rest

    def ask(self, *words: bytes | str | int) -> bytes | int | None:
        """Send one command, return its answer."""
        self.send(*words)
        return self.receive()


def encode(*words: bytes | str | int) -> bytes:
    """Return a command as it goes over the wire."""
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        data = word if isinstance(word, bytes) else str(word).encode()
        parts.append(b"$%d\r\n%s\r\n" % (len(data), data))
    return b"".join(parts)
