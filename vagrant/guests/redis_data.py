# SPDX-License-Identifier: GPL-2.0-or-later
# ruff: noqa: S311
"""Fills a redis guest with data whose content is derived from its key, and verifies it.

redis_data.py load ADDRESS MEBIBYTES
"""

import json
import random
import sys
import time

from resp import Connection, encode

VALUE = 1024
"""About the size of one value."""
BATCH = 512


def value(number: int) -> str:
    """Return the value of `session:NUMBER`: like what a web application stores, half of it random."""
    dice = random.Random(number)
    session = {
        "user": number,
        "name": f"{dice.choice(('ada', 'grace', 'edsger', 'barbara', 'donald'))}.{dice.randrange(100000)}",
        "created": 1_790_000_000 + dice.randrange(10_000_000),
        "token": dice.randbytes(192).hex(),
        "cart": [{"article": dice.randrange(1_000_000), "count": dice.randrange(1, 9)} for _ in range(12)],
    }
    return json.dumps(session).ljust(VALUE, "-")


def listening(address: str, limit: float = 60) -> Connection:
    """Connect to a server that is only just starting, within `limit` seconds."""
    end = time.monotonic() + limit
    while True:
        try:
            return Connection(address)
        except ConnectionRefusedError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def load(address: str, mebibytes: int) -> int:
    """Write that many MiB of values; return the number of keys."""
    number = mebibytes * 1024 * 1024 // VALUE
    server = listening(address)
    for first in range(0, number, BATCH):
        batch = range(first, min(first + BATCH, number))
        server.socket.sendall(b"".join(encode("SET", f"session:{key}", value(key)) for key in batch))
        for _ in batch:
            server.receive()
    server.ask("SET", "sessions", number)
    return number


def verify(server: Connection) -> tuple[int, int]:
    """Read all values back; return how many there must be, and how many are wrong."""
    number = int(server.ask("GET", "sessions") or 0)
    bad = 0
    for first in range(0, number, BATCH):
        batch = range(first, min(first + BATCH, number))
        server.socket.sendall(b"".join(encode("GET", f"session:{key}") for key in batch))
        bad += sum(server.receive() != value(key).encode() for key in batch)
    return number, bad


if __name__ == "__main__":
    print(load(sys.argv[2], int(sys.argv[3])), "keys")
