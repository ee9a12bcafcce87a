# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs on the client: one TCP connection to each talk guest, a request now and then, every answer checked.

    talk_clients.py REPORT ADDRESS...

REPORT is a file, written anew twice a second: {ADDRESS: {"answers": N, "problem": null or what ended the connection}}.
A connection is never opened again: what broke stays broken. Ends at SIGTERM.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time
from pathlib import Path

PORT = 7
PAUSE = 0.3  # seconds between an answer and the next request
CONNECT_LIMIT = 60.0


class Client:
    """One connection; a request is under way, or the next one is due."""

    def __init__(self, address: str) -> None:
        self.answers = 0
        self.problem: str | None = None
        self._word = ""
        self._waiting = False
        self._due = 0.0
        self._received = b""
        self.socket = _connected(address)
        self.socket.setblocking(False)

    def ask(self) -> None:
        """Send the next request if it is due."""
        if not self.problem and not self._waiting and time.monotonic() >= self._due:
            self._waiting = True
            self.socket.send(f"request-{self.answers + 1}\n".encode())

    def hear(self) -> None:
        """Take what has come; a whole line must be the answer to what was asked."""
        data = self.socket.recv(4096)
        if not data:
            raise ConnectionError("it was closed")
        self._received += data
        if self._received.endswith(b"\n"):
            said, number, word = self._received.decode().split()
            wanted = self.answers + 1
            if said != f"request-{wanted}" or int(number) != wanted or word != (self._word or word):
                raise ValueError(f"a wrong answer to request {wanted}: {self._received!r}")
            self.answers, self._word, self._received, self._waiting = wanted, word, b"", False
            self._due = time.monotonic() + PAUSE


def _connected(address: str) -> socket.socket:
    """The guest has only just been started: it refuses until its service listens."""
    end = time.monotonic() + CONNECT_LIMIT
    while True:
        try:
            return socket.create_connection((address, PORT), CONNECT_LIMIT)
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def main() -> None:
    """Ask until told to stop."""
    report, addresses = Path(sys.argv[1]), sys.argv[2:]
    clients = {address: Client(address) for address in addresses}
    selector = selectors.DefaultSelector()
    for client in clients.values():
        selector.register(client.socket, selectors.EVENT_READ, client)
    told_at = 0.0
    while True:
        ready = {key.data for key, _ in selector.select(0.1)}
        for client in clients.values():
            try:
                if client in ready:
                    client.hear()
                client.ask()
            except (OSError, ValueError) as error:
                if not client.problem:
                    client.problem = str(error)
                    selector.unregister(client.socket)
        if time.monotonic() - told_at > 0.5:
            told_at = time.monotonic()
            told = {each: {"answers": it.answers, "problem": it.problem} for each, it in clients.items()}
            new = report.with_suffix(".new")
            new.write_text(json.dumps(told))
            new.replace(report)


if __name__ == "__main__":
    main()
