# SPDX-License-Identifier: GPL-2.0-or-later
"""Outside clients of a guest's services: each asks through one connection, again and again, and checks every answer.

- `postgresql`: rows inserted in one transaction, which stays open to the end; then COMMIT, and another session counts
- `redis`: a counter
- `http`: the same page from nginx, kept alive
- `requests`: the page of requests.js, which has the number of the request
- `ssh`: a login shell on a terminal, with a job in the background

No connection is ever opened again: what a migration breaks stays broken. Ends after --seconds, or at SIGTERM or SIGINT,
and then prints what was seen as JSON. Exit status: 0 nothing lost or wrong, 1 otherwise, 2 wrong arguments.
"""

import argparse
import http.client
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from postgres import Session
from resp import Connection

PAUSE = 0.02
"""Seconds before the next request."""
SSH = ("ssh", "-tt", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
       "-o", "LogLevel=ERROR")  # fmt: skip
PREPARE = "stty -echo; PS1= PS2=; bind 'set enable-bracketed-paste off'; sleep 100000 & echo ready\n"
ASK = "echo answer {number} $$ $(tty) $(jobs -r | wc -l)\n"
SERVICES: "dict[str, Callable[[Client], None]]" = {}


class Client(threading.Thread):
    """The client of one service: what it has seen, and the loop that it asks in."""

    def __init__(self, name: str, address: str, patience: float, gaps: float) -> None:
        super().__init__(name=name, daemon=True)
        self.address, self.patience, self.gaps = address, patience, gaps
        self.connected, self.stopped = threading.Event(), threading.Event()
        self.told: dict[str, Any] = {"answers": 0, "longest_gap_ms": 0.0, "gaps": [], "problem": None}

    def run(self) -> None:
        try:
            SERVICES[self.name](self)
        except (OSError, ValueError, http.client.HTTPException) as error:
            self.told["problem"] = str(error) or type(error).__name__
        self.connected.set()

    def until_stopped(self, ask: Callable[[int], None]) -> None:
        """Ask, with the number of the request from 1 on, until told to stop; and once more, so that it still works."""
        last = time.monotonic()
        stopped = False
        while not stopped:
            stopped = self.stopped.wait(PAUSE)
            ask(self.told["answers"] + 1)
            now = time.monotonic()
            self.told["answers"] += 1
            gap = round((now - last) * 1000, 1)
            self.told["longest_gap_ms"] = max(self.told["longest_gap_ms"], gap)
            if now - last > self.gaps:
                self.told["gaps"].append({"until": round(time.time(), 3), "ms": gap})
            last = now
            self.connected.set()


def expect(what: str, found: object, expected: object) -> None:
    """Raise ValueError unless it is what was expected."""
    if found != expected:
        raise ValueError(f"{what} is {found!r}, not {expected!r}")


def postgresql(client: Client) -> None:
    """Insert and count in a transaction that is open all the time."""
    session = Session(client.address, timeout=client.patience)
    session.ask("DROP TABLE IF EXISTS rig")
    session.ask("CREATE TABLE rig (number int)")
    session.ask("BEGIN")
    client.told["backend"] = session.backend
    client.told["transaction"] = session.value("SELECT txid_current()")

    def insert(number: int) -> None:
        session.ask(f"INSERT INTO rig VALUES ({number})")  # noqa: S608  # a number of ours
        expect("the number of rows", session.value("SELECT count(*) FROM rig"), str(number))

    client.until_stopped(insert)
    expect("the transaction", session.value("SELECT txid_current()"), client.told["transaction"])
    expect("the backend", session.value("SELECT pg_backend_pid()"), str(client.told["backend"]))
    other = Session(client.address, timeout=client.patience)
    expect("what others saw before COMMIT", other.value("SELECT count(*) FROM rig"), "0")
    session.ask("COMMIT")
    client.told["rows"] = int(other.value("SELECT count(*) FROM rig"))
    expect("what others see", client.told["rows"], client.told["answers"])


def redis(client: Client) -> None:
    """Increment a counter."""
    server = Connection(client.address, timeout=client.patience)
    server.ask("DEL", "rig")
    client.until_stopped(lambda number: expect("the counter", server.ask("INCR", "rig"), number))


def page(client: Client) -> None:
    """Get the same page."""
    get(client, lambda _number, body: expect("whether there is a page", bool(body), True))


def requests(client: Client) -> None:
    """Get a page that has the number of the request."""
    get(client, lambda number, body: expect("the page", body.decode(), str(number)))


def get(client: Client, check: Callable[[int, bytes], None]) -> None:
    """Get the page, which is checked together with the number of the request."""
    server = http.client.HTTPConnection(client.address, timeout=client.patience)
    server.connect()
    opened = server.sock

    def ask(number: int) -> None:
        server.request("GET", "/")
        answer = server.getresponse()
        expect("the status", answer.status, 200)
        check(number, answer.read())
        expect("the connection", server.sock is opened, True)  # where it was closed http.client makes another one

    client.until_stopped(ask)


def ssh(client: Client) -> None:
    """Type in a login shell with a terminal."""
    command = [*SSH, f"root@{client.address}"]
    # In a session of its own: what ends this program would end it, too.
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as shell:

        def say(typed: str) -> None:
            if shell.stdin is not None:
                shell.stdin.write(typed)
                shell.stdin.flush()

        def answered(typed: str, begin: str) -> list[str]:
            say(typed)
            for line in shell.stdout or ():
                if line.startswith(begin):
                    return line.split()
            raise ConnectionResetError("the session has ended")

        try:
            answered(PREPARE, "ready")
            client.told["shell"] = answered(ASK.format(number=0), "answer 0")[2:]
            client.until_stopped(
                lambda number: expect(
                    "the shell", answered(ASK.format(number=number), f"answer {number} ")[2:], client.told["shell"]
                )
            )
            say("kill %1; exit 7\n")
            expect("the shell's exit status", shell.wait(client.patience), 7)
        finally:
            shell.kill()


SERVICES.update(postgresql=postgresql, redis=redis, http=page, ssh=ssh, requests=requests)
OF_SYSTEMD = ["postgresql", "redis", "http", "ssh"]


def main() -> int:
    """Start the clients, and wait until told to stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("services", nargs="*", default=OF_SYSTEMD, help="those of a systemd guest unless named")
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--gaps", type=float, default=float("inf"), metavar="SECONDS", help="list longer waits")
    parser.add_argument("--patience", type=float, default=120.0, metavar="SECONDS", help="how long one answer may take")
    options = parser.parse_args()

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    clients = [Client(name, options.address, options.patience, options.gaps) for name in options.services]
    for client in clients:
        client.start()
    for client in clients:
        client.connected.wait()
    print("connected", file=sys.stderr, flush=True)
    stop.wait(options.seconds)
    for client in clients:
        client.stopped.set()
    for client in clients:
        client.join(options.patience)
        if client.is_alive():
            client.told["problem"] = "no answer"
    print(json.dumps({client.name: client.told for client in clients}), flush=True)
    return 1 if any(client.told["problem"] for client in clients) else 0


if __name__ == "__main__":
    sys.exit(main())
