# SPDX-License-Identifier: GPL-2.0-or-later
"""How fast data gets through the tunnel: migrator's transfer against iperf3 through the same wireguard-go.

    python -m bench.tunnel [--mib N] [--rounds N] [--kind random|memory] [--to FOLDER] [--json]

Two hosts of the rig (`MIGRATOR_RIG`, default `bench`) have one tunnel. In each round iperf3 sends as many bytes over
one TCP connection as the transfer does, before it and after it; all use the session's only open port. Everything runs
on this one machine, so judge the ratio within a round, not the figures: the median of the ratios is the result. Data
goes from a file in memory to FOLDER (default /dev/shm; /pool is btrfs on a disk).

It judges nothing, but prints the ratio that is wanted. Exit status: 0 measured, 2 something failed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TREE = Path(__file__).resolve().parent.parent
RIG = str(TREE / "vagrant" / "rig")
PYTHON = "/opt/migrator/venv/bin/python"
HERE = "/tmp/bench_tunnel.py"  # noqa: S108  # in the rig's hosts
SOURCE = "/dev/shm/bench-source"  # noqa: S108
HOSTS = {"initiator": "hosta", "responder": "hostb"}
ADDRESSES = {"hosta": "10.0.3.2", "hostb": "10.0.3.3"}
WIREGUARD_PORT = 40123
GOAL = 0.9
CHUNK = 64 << 20


# --- On the hosts ---


@dataclasses.dataclass(frozen=True)
class Keys:
    """Keys that both sides can derive; this tunnel protects nothing."""

    role: str
    session: bytes
    preshared: bytes = hashlib.sha256(b"preshared").digest()

    @property
    def private_key(self) -> bytes:
        return hashlib.sha256(self.role.encode()).digest()

    @property
    def peer_public(self) -> bytes:
        from tunnel.wireguard import wireguard_keys

        return wireguard_keys.public_key(dataclasses.replace(self, role=other(self.role)).private_key)


@dataclasses.dataclass(frozen=True)
class Straight:
    """A path that needs no punching."""

    endpoint: tuple[str, int]
    local_port: int = WIREGUARD_PORT


def other(role: str) -> str:
    return "responder" if role == "initiator" else "initiator"


async def hold(role: str, session: str) -> None:
    """Keep the tunnel until stdin ends; prints its addresses once it is up."""
    from tunnel.health import path_health
    from tunnel.health.echo import Echo
    from tunnel.interface import device, leftovers

    leftovers.sweep()
    endpoint = ADDRESSES[HOSTS[other(role)]], WIREGUARD_PORT
    made = await device.up(Keys(role, bytes.fromhex(session)), Straight(endpoint), role)  # type: ignore[arg-type]
    echo = Echo.open(made.local_address, made.remote_address, made.echo_port)
    try:
        await path_health.first_answer(made, echo)
        size = await path_health.tune(made, echo, endpoint)
        print(json.dumps({"local": made.local_address, "remote": made.remote_address, "port": made.port, "mtu": size}),
              flush=True)  # fmt: skip
        await asyncio.to_thread(sys.stdin.read)
    finally:
        echo.close()
        await made.close()


def serve(address: str, port: int, folder: str) -> None:
    """Receive one transfer, as `migrator serve` would."""
    from migrator.transfer import messages, rpc, serve_requests, spool, wire_codec
    from migrator.transfer.stream import FileStream

    with socket.create_server((address, port), family=socket.AF_INET6, reuse_port=False) as server:
        print("ready", flush=True)
        accepted, _ = server.accept()
    tuned(accepted)
    fd = accepted.detach()
    with rpc.Connection(FileStream(fd, fd)) as connection:
        connection.hello()

        def receive(fields: dict[str, Any]) -> rpc.Takeover:
            files = wire_codec.decoded(messages.Transfer, fields).files
            return spool.receive(Path(folder), files, durable=not folder.startswith("/dev/shm"))  # noqa: S108

        serve_requests.serve(connection, {"transfer": receive})


def send(address: str, port: int) -> None:
    """Send the source file and print how long it took."""
    from migrator.transfer import messages, rpc, sender
    from migrator.transfer.stream import FileStream

    connected = socket.create_connection((address, port))
    tuned(connected)
    fd = connected.detach()
    with rpc.Connection(FileStream(fd, fd)) as connection:
        connection.hello()
        source = Path(SOURCE)
        files = [sender.SourceFile("disk", source, source.stat().st_size)]
        used = os.times()
        result = sender.send_files(connection, messages.Transfer(), files)
        spent = os.times()
    print(json.dumps({"seconds": result.seconds, "wire_bytes": result.wire_bytes,
                      "cpu_seconds": spent.user + spent.system - used.user - used.system}))  # fmt: skip


def tuned(connected: socket.socket) -> None:
    """Options as for a session's connection."""
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def make(mib: int, kind: str) -> None:
    """Write the source file: random data, or pages like those of a database."""
    page = b"".join(b"key:%09d\x00\x00\x10\x7f\x00\x00value-%d" % (i, i * 7919) for i in range(64))[:2048]
    block = os.urandom(CHUNK) if kind == "random" else b"".join(
        page + bytes(1024) + os.urandom(1024) for _ in range(CHUNK >> 12)
    )
    with Path(SOURCE).open("wb") as file:
        for left in range(mib << 20, 0, -CHUNK):
            file.write(block[:left])


# --- On the machine ---


def rig(*arguments: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([RIG, *arguments], check=True, text=True, stdout=subprocess.PIPE, **settings)


def inside(host: str, *argv: str, **settings: Any) -> str:
    return rig("exec", host, "--", *argv, **settings).stdout


@contextlib.contextmanager
def started(host: str, *argv: str) -> Iterator[subprocess.Popen[str]]:
    """A command that runs on a host; it is told to stop by the end of its stdin, and is waited for."""
    argv = (RIG, "exec", host, "--", *argv)
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
        process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


@contextlib.contextmanager
def tunnel_up() -> Iterator[dict[str, Any]]:
    """The tunnel, as the initiator sees it."""
    session = secrets.token_hex(16)
    with started("hostb", PYTHON, HERE, "--hold", "responder", session) as theirs, \
            started("hosta", PYTHON, HERE, "--hold", "initiator", session) as ours:
        assert ours.stdout and theirs.stdout  # noqa: S101
        theirs.stdout.readline()
        found = ours.stdout.readline()
        yield json.loads(found)


def by_iperf(where: dict[str, Any], total: int) -> float:
    """Mbit/s of one TCP connection, counting what arrived."""
    ends = [where["remote"], "-p", str(where["port"])]
    with started("hostb", "iperf3", "-s", "-1", "-B", ends[0], *ends[1:]):
        wait_for_listener("hostb", where["port"])
        told = json.loads(inside("hosta", "iperf3", "-J", "-c", ends[0], *ends[1:], "-n", str(total)))
    found: float = told["end"]["sum_received"]["bits_per_second"] / 1e6
    return found


def by_transfer(where: dict[str, Any], total: int, folder: str) -> dict[str, float]:
    """Mbit/s of migrator's transfer, and what it used."""
    spool = f"{folder}/bench-spool"
    inside("hostb", "rm", "-rf", spool)
    with started("hostb", PYTHON, HERE, "--serve", where["remote"], str(where["port"]), spool) as server:
        assert server.stdout  # noqa: S101
        server.stdout.readline()
        told = json.loads(inside("hosta", PYTHON, HERE, "--send", where["remote"], str(where["port"])))
    inside("hostb", "rm", "-rf", spool)
    return {"mbit_s": total * 8 / told["seconds"] / 1e6, "cpu_seconds": told["cpu_seconds"],
            "wire": told["wire_bytes"] / total}  # fmt: skip


def wait_for_listener(host: str, port: int) -> None:
    for _ in range(200):
        if f":{port} " in inside(host, "ss", "-Hltn"):
            return
        time.sleep(0.02)
    raise TimeoutError(f"nothing listens on port {port} in {host}")


def measure(mib: int, rounds: int, kind: str, folder: str) -> dict[str, Any]:
    rig("up", stderr=subprocess.DEVNULL)
    try:
        for host in ADDRESSES:
            rig("copy", str(Path(__file__).resolve()), f"{host}:{HERE}")
        inside("hosta", PYTHON, HERE, "--make", str(mib), kind)
        found = []
        with tunnel_up() as where:
            by_iperf(where, 64 << 20)  # the first one is slow
            for _ in range(rounds):
                iperf = by_iperf(where, mib << 20)
                ours = by_transfer(where, mib << 20, folder)
                again = by_iperf(where, mib << 20)
                # What else runs on this machine changes while we measure: so measure before and after, not just before.
                found.append({"iperf3": (iperf + again) / 2, **ours, "ratio": ours["mbit_s"] * 2 / (iperf + again)})
        inside("hosta", "rm", "-f", SOURCE)
    finally:
        if not os.environ.get("MIGRATOR_RIG_KEEP"):
            rig("down", stderr=subprocess.DEVNULL)
    return {"mib": mib, "kind": kind, "to": folder, "mtu": where["mtu"], "rounds": found,
            "ratio": statistics.median(each["ratio"] for each in found)}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kind", choices=("random", "memory"), default="random")
    parser.add_argument("--to", metavar="FOLDER", default="/dev/shm")  # noqa: S108
    parser.add_argument("--json", action="store_true")
    for end, count in (("hold", 2), ("serve", 3), ("send", 2), ("make", 2)):
        parser.add_argument(f"--{end}", nargs=count, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.hold:
        asyncio.run(hold(*options.hold))
    elif options.serve:
        serve(options.serve[0], int(options.serve[1]), options.serve[2])
    elif options.send:
        send(options.send[0], int(options.send[1]))
    elif options.make:
        make(int(options.make[0]), options.make[1])
    else:
        return report(options)
    return 0


def report(options: argparse.Namespace) -> int:
    os.environ.setdefault("MIGRATOR_RIG", "bench")
    try:
        found = measure(options.mib, options.rounds, options.kind, options.to)
    except (subprocess.SubprocessError, OSError, ValueError) as error:
        print(f"bench.tunnel: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        for each in found["rounds"]:
            print(f"iperf3 {each['iperf3']:6.0f} Mbit/s   migrator {each['mbit_s']:6.0f} Mbit/s   "
                  f"ratio {each['ratio']:.2f}   sender's processor {each['cpu_seconds']:.1f} s")  # fmt: skip
        print(f"{found['mib']} MiB of {found['kind']} data to {found['to']}, MTU {found['mtu']}: {found['ratio']:.2f} "
              f"({GOAL} is wanted)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
