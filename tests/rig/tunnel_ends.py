# SPDX-License-Identifier: GPL-2.0-or-later
"""Both ends of a real WireGuard tunnel between the rig's two hosts, each in a process that a test can ask, end and
kill; and what to send through it.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import json
import secrets
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness.rig import Rig, Running, wait_for

HOLDER = Path(__file__).with_name("tunnel_holder.py")
HERE = "/tmp/tunnel_holder.py"
PYTHON = "/opt/migrator/venv/bin/python"
ADDRESSES = {"hosta": "10.0.3.2", "hostb": "10.0.3.3"}
PORTS = {"hosta": 40001, "hostb": 40002}
ROLES = {"hosta": "initiator", "hostb": "responder"}

# All that a tunnel puts into a host; a zombie is one that the host's init is about to take away.
LEFT = r"""
nft list tables | grep mig- | sed 's/^/firewall: /'
ip -o link show | grep ' mig-' | sed 's/^[0-9]*: /interface: /; s/:* <.*//'
ip -6 route show table all | grep mig- | sed 's/^/route: /'
for file in /run/wireguard/* /run/migrator/tunnel /run/migrator/tunnel/* /run/migrator/tunnel/.[!.]*; do
    [ ! -e "$file" ] || echo "file: $file"
done
pgrep -a -r D,R,S,T -x wireguard-go | sed 's/^/process: /'
exit 0
"""


def left(rig: Rig) -> list[str]:
    """What there is of tunnels on both hosts."""
    with concurrent.futures.ThreadPoolExecutor() as both:
        found = both.map(lambda host: (host, rig.sh(host, LEFT).splitlines()), ADDRESSES)
        return [f"{host}: {line}" for host, lines in found for line in lines]


def sweep(rig: Rig, host: str) -> list[str]:
    """Remove what killed processes have left there; the names of the tunnels."""
    names: list[str] = rig.exec(host, PYTHON, HERE, "sweep").json["names"]
    return names


@dataclasses.dataclass
class End:
    """One host's end of a tunnel."""

    rig: Rig
    host: str
    running: Running

    def events(self, kind: str) -> list[dict[str, Any]]:
        found = (json.loads(line) for line in self.running.stdout.splitlines() if line.startswith("{"))
        return [event for event in found if event["event"] == kind]

    def wait(self, kind: str, count: int = 1) -> dict[str, Any]:
        wait_for(lambda: len(self.events(kind)) >= count or self.running.process.poll() is not None,
                 f"{kind} from {self.host}: {self.running.stdout} {self.running.stderr}")  # fmt: skip
        assert len(self.events(kind)) >= count, f"{self.host}: {self.running.stdout} {self.running.stderr}"
        return self.events(kind)[count - 1]

    def ask(self, command: str, kind: str) -> dict[str, Any]:
        before = len(self.events(kind))
        self.rig.put(self.host, "/tmp/holder.new", command)
        self.rig.sh(self.host, "mv /tmp/holder.new /tmp/holder.commands")
        return self.wait(kind, before + 1)

    def close(self) -> None:
        """Ctrl-C."""
        self.running.signal(signal.SIGINT)
        outcome = self.running.wait()
        assert outcome.status == 0, str(outcome)

    def kill(self) -> None:
        """kill -9, of the very process and not of `rig exec`."""
        self.rig.sh(self.host, f"kill -9 $(pgrep -f '^{PYTHON} {HERE}')")
        self.running.wait()

    @property
    def up(self) -> dict[str, Any]:
        return self.wait("up")


@contextlib.contextmanager
def one_end(rig: Rig, host: str, session: str) -> Iterator[End]:
    peer = "hostb" if host == "hosta" else "hosta"
    arguments = [ROLES[host], session, ADDRESSES[peer], str(PORTS[peer]), str(PORTS[host])]
    with rig.start(host, PYTHON, HERE, *arguments) as running:
        yield End(rig, host, running)


@contextlib.contextmanager
def tunnel(rig: Rig, session: str | None = None) -> Iterator[tuple[End, End]]:
    """A tunnel between both hosts that carries echoes; both ends are closed by Ctrl-C unless they have ended."""
    session = session or secrets.token_hex(16)
    with contextlib.ExitStack() as stack:
        theirs = stack.enter_context(one_end(rig, "hostb", session))
        theirs.wait("up")
        ours = stack.enter_context(one_end(rig, "hosta", session))
        try:
            for end in (ours, theirs):
                end.wait("tuned")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{ours.running.stdout}\n{theirs.running.stdout}") from None
        yield ours, theirs
        for end in (ours, theirs):
            if end.running.process.poll() is None:
                end.close()


# --- Through it ---

LISTEN = """
import socket, sys, select
listeners = [socket.create_server(("::", int(port)), family=socket.AF_INET6) for port in sys.argv[1:]]
print("listens", flush=True)
while True:
    for ready in select.select(listeners, [], [])[0]:
        ready.accept()[0].close()
"""

CONNECT = """
import asyncio, socket, sys
limit, *each = sys.argv[1:]
async def connects(target):
    address, port, source, local = target.split(",")
    try:
        async with asyncio.timeout(float(limit)):
            _, writer = await asyncio.open_connection(address, int(port), local_addr=(local, int(source)))
            writer.close()
            return target
    except OSError:
        return ""
async def main():
    print(*await asyncio.gather(*map(connects, each)))
asyncio.run(main())
"""

FORWARD = """
import socket, sys, select
mine = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
mine.bind(("", int(sys.argv[1])))
theirs = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
theirs.connect((sys.argv[2], int(sys.argv[3])))
print("forwards", flush=True)
last = None
while True:
    for ready in select.select([mine, theirs], [], [])[0]:
        data, sender = ready.recvfrom(65536)
        if ready is mine:
            last = sender
            theirs.send(data)
        elif last:
            mine.sendto(data, last)
"""

SEND = """
import socket, sys
with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
    for _ in range(3):
        sender.sendto(b"hello", (sys.argv[1], int(sys.argv[2])))
"""


@contextlib.contextmanager
def listening(rig: Rig, host: str, *ports: int) -> Iterator[None]:
    """Something that listens on these TCP ports of all of the host's addresses."""
    with rig.start(host, "python3", "-c", LISTEN, *map(str, ports)) as running:
        wait_for(lambda: running.stdout or running.process.poll() is not None, "it listens")
        assert running.stdout, running.stderr
        yield


def connects(rig: Rig, host: str, address: str, port: int) -> None:
    """A TCP connection to there comes about."""
    wait_for(lambda: _connected(rig, host, 30, f"{address},{port},0,::"), f"{host} connects to port {port}")


def shut(rig: Rig, host: str, *targets: tuple[str, int], source: int = 0, local: str = "::") -> None:
    """No TCP connection to any of these comes about, though it would by now if nothing stopped it."""
    assert not _connected(rig, host, 0.5, *(f"{address},{port},{source},{local}" for address, port in targets))


def _connected(rig: Rig, host: str, limit: float, *targets: str) -> str:
    return rig.exec(host, "python3", "-c", CONNECT, str(limit), *targets).stdout.strip()


def udp(rig: Rig, host: str, address: str, port: int) -> None:
    """Three datagrams from any port."""
    rig.exec(host, "python3", "-c", SEND, address, str(port))


@contextlib.contextmanager
def dropped(rig: Rig, host: str, rule: str) -> Iterator[None]:
    """What matches a rule does not reach a host."""
    rig.exec(host, "nft", "-f", "-", input=f"""
        table ip test_drop {{
            chain c {{
                type filter hook input priority filter
                {rule} drop
            }}
        }}""")
    try:
        yield
    finally:
        rig.sh(host, "nft delete table ip test_drop")


@contextlib.contextmanager
def counted(rig: Rig, host: str, name: str, hook: str, rule: str) -> Iterator[Callable[[], int]]:
    """Counts packets from an interface that come through its firewall and match a rule."""
    rig.exec(host, "nft", "-f", "-", input=f"""
        table inet test_count {{
            chain c {{
                type filter hook {hook} priority filter + 10
                iifname "{name}" {rule} counter
            }}
        }}""")

    def count() -> int:
        listed = json.loads(rig.sh(host, "nft -j list chain inet test_count c"))["nftables"]
        (found,) = [e["counter"]["packets"] for entry in listed if "rule" in entry for e in entry["rule"]["expr"]
                    if "counter" in e]  # fmt: skip
        return int(found)

    try:
        yield count
    finally:
        rig.sh(host, "nft delete table inet test_count")
