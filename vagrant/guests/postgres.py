# SPDX-License-Identifier: GPL-2.0-or-later
"""As much of PostgreSQL's protocol as the rig needs, over one connection that is never replaced.

See "Message Formats" in PostgreSQL's documentation; queries are simple ones, whose answers are text.
"""

import socket
import struct

USER = "postgres"
VERSION = 3 << 16


class Session:
    """One connection to a PostgreSQL server that trusts us."""

    def __init__(self, host: str, port: int = 5432, *, timeout: float = 30) -> None:
        self.socket = socket.create_connection((host, port), timeout=timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.socket.makefile("rb")
        self.backend = 0
        words = struct.pack("!I", VERSION) + f"user\0{USER}\0database\0{USER}\0\0".encode()
        self.socket.sendall(struct.pack("!I", len(words) + 4) + words)
        self._answer()

    def ask(self, query: str) -> list[list[str]]:
        """Send one query, return the rows of its answer; raises OSError, and ValueError for what it refuses."""
        data = query.encode() + b"\0"
        self.socket.sendall(b"Q" + struct.pack("!I", len(data) + 4) + data)
        return self._answer()

    def value(self, query: str) -> str:
        """Return the only field of the only row."""
        ((field,),) = self.ask(query)
        return field

    def _answer(self) -> list[list[str]]:
        rows: list[list[str]] = []
        refused = ""
        while True:
            head = self.file.read(5)
            if len(head) < 5:
                raise ConnectionResetError("the server closed the connection")
            body = self.file.read(struct.unpack("!I", head[1:])[0] - 4)
            kind = head[:1]
            if kind == b"K":
                (self.backend,) = struct.unpack_from("!I", body)
            elif kind == b"D":
                rows.append(_fields(body))
            elif kind == b"E":
                refused = body.replace(b"\0", b" ").decode()
            elif kind == b"Z":
                if refused:
                    raise ValueError(refused)
                return rows


def _fields(body: bytes) -> list[str]:
    """Return the fields of a row; NULL is empty."""
    found, position = [], 2
    for _ in range(struct.unpack_from("!H", body)[0]):
        (size,) = struct.unpack_from("!i", body, position)
        position += 4
        found.append(body[position : position + max(size, 0)].decode())
        position += max(size, 0)
    return found
