# SPDX-License-Identifier: GPL-2.0-or-later
"""How fast data gets from one host to the other: migrator's transfer against the `ssh` program with a pipe.

    python -m bench.transfer [--mib N] [--kind KIND] [--json]

Everything is on this machine's loopback interface, to and from /dev/shm, so that neither network nor disk limits it.
Both ways take turns in the same run, and the best time of each counts: judge the ratio, not the figures.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness.loopback_sshd import Sshd
from migrator.remote import destination, ssh
from migrator.transfer import messages, rpc, sender, serve_requests, spool, wire_codec
from migrator.transfer.stream import FileStream

ROOT = Path(__file__).resolve().parent.parent
SHM = Path("/dev/shm")  # noqa: S108


def random_data(size: int) -> bytes:
    """Data that cannot be compressed: encrypted or compressed data in memory."""
    return os.urandom(min(size, 64 << 20)) * -(-size // (64 << 20))


def memory_data(size: int) -> bytes:
    """Like the pages of a database: text and counters, pointers, some zeros, a quarter of noise."""
    page = b"".join(b"key:%09d\x00\x00\x10\x7f\x00\x00value-%d" % (i, i * 7919) for i in range(64))[:2048]
    block = b"".join(page + bytes(1024) + os.urandom(1024) for _ in range(16 << 8))
    return (block * -(-size // len(block)))[:size]


KINDS: dict[str, Callable[[int], bytes]] = {"random": random_data, "memory": memory_data}


def serve(folder: str) -> None:
    """The other side: `migrator serve` with nothing but the transfer."""
    connection = rpc.Connection(FileStream.from_stdio(), timeout=30)
    connection.hello()

    def receive(fields: dict[str, Any]) -> rpc.Takeover:
        return spool.receive(Path(folder), wire_codec.decoded(messages.Transfer, fields).files, durable=False)

    serve_requests.serve(connection, {"transfer": receive})


@contextlib.contextmanager
def over_pipe(folder: Path) -> Iterator[rpc.Connection]:
    """A connection to a process of its own over a socket pair: what the protocol itself costs."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(command(folder), stdin=theirs.fileno(), stdout=theirs.fileno())
    fd = ours.detach()
    with rpc.Connection(FileStream(fd, fd), timeout=30) as connection:
        connection.hello()
        yield connection
    process.wait()


@contextlib.contextmanager
def over_ssh(server: Sshd, folder: Path) -> Iterator[rpc.Connection]:
    where = destination.parse(server.destination)
    with ssh.connect(where, accept_new_host_key=False, timeout=30) as session:
        connection = rpc.Connection(session.serve(command(folder)), timeout=30)
        connection.hello()
        yield connection


def command(folder: Path) -> list[str]:
    return ["env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "bench.transfer", "--serve", str(folder)]


def send(connection: rpc.Connection, source: Path, folder: Path) -> dict[str, float]:
    for name in ("pages", "pages.index"):
        (folder / name).unlink(missing_ok=True)
    files = [sender.SourceFile("pages", source, source.stat().st_size)]
    result = sender.send_files(connection, messages.Transfer(), files)
    return {"seconds": result.seconds, "wire": result.wire_bytes}


def send_by_program(server: Sshd, source: Path, folder: Path, cipher: str) -> dict[str, float]:
    """`ssh` itself; its connection is made before the clock starts, as for the others."""
    target = folder / "by-ssh"
    target.unlink(missing_ok=True)
    with source.open("rb") as file:
        process = subprocess.Popen(
            [*server.ssh[:1], "-c", cipher, *server.ssh[1:], f"echo; cat > {target}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )
        assert process.stdin and process.stdout  # noqa: S101
        process.stdout.readline()
        begun = time.monotonic()
        shutil.copyfileobj(file, process.stdin, 1 << 20)
        process.stdin.close()
        process.wait()
    return {"seconds": time.monotonic() - begun, "wire": source.stat().st_size}


def connecting(server: Sshd) -> dict[str, float]:
    """Milliseconds to connect, log in and start a program, the median of five; the first one imports paramiko too.

    Also, as parts of these, the time to start the program and the time to close the connection, which must not wait for
    a timer: delayed acknowledgements would cost 40 ms, paramiko's own check of its socket up to 100.
    """
    times, starting, closing = [], [], []
    for _ in range(6):
        begun = time.monotonic()
        with ssh.connect(destination.parse(server.destination), accept_new_host_key=False, timeout=30) as session:
            connected = time.monotonic()
            stream = session.serve(["echo"])
            starting.append((time.monotonic() - connected) * 1000)
            stream.settimeout(30)
            stream.readinto(memoryview(bytearray(1)))
            times.append((time.monotonic() - begun) * 1000)
            begun = time.monotonic()
        closing.append((time.monotonic() - begun) * 1000)
    begun = time.monotonic()
    subprocess.run([*server.ssh, "echo"], check=True, capture_output=True)
    return {"first": times[0], "later": statistics.median(times[1:]), "starting": statistics.median(starting),
            "closing": statistics.median(closing), "program": (time.monotonic() - begun) * 1000}  # fmt: skip


def verifying(folder: Path, rounds: int) -> float:
    """MB per second at which received data is checked against its digests, as a restore does before it begins."""
    seconds = []
    for _ in range(rounds):
        begun = time.monotonic()
        spool.verify(folder / "pages")
        seconds.append(time.monotonic() - begun)
    return (folder / "pages").stat().st_size / 1e6 / min(seconds)


def measure(size: int, kind: str, rounds: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory(dir=SHM) as name:
        folder = Path(name)
        source = folder / "source"
        source.write_bytes(KINDS[kind](size))
        with Sshd(folder) as server:
            server.know()
            os.environ["HOME"] = str(server.home)
            connect_ms = connecting(server)
            found: dict[str, list[dict[str, float]]] = {}
            with over_pipe(folder) as pipe, over_ssh(server, folder) as remote:
                for _ in range(rounds):
                    found.setdefault("pipe", []).append(send(pipe, source, folder))
                    found.setdefault("ssh", []).append(send(remote, source, folder))
                    for cipher in ("aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com"):
                        found.setdefault(f"program {cipher}", []).append(
                            send_by_program(server, source, folder, cipher)
                        )
            verified = verifying(folder, rounds)
    rates = {key: {"mb_per_second": size / 1e6 / min(r["seconds"] for r in runs), "wire": runs[-1]["wire"] / size}
             for key, runs in found.items()}  # fmt: skip
    program = max(rate["mb_per_second"] for key, rate in rates.items() if key.startswith("program"))
    return {"mib": size >> 20, "kind": kind, "connect_ms": connect_ms, "rates": rates, "verified": verified,
            "ssh_to_program": rates["ssh"]["mb_per_second"] / program}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--kind", choices=KINDS, default="memory")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", metavar="FOLDER", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve)
        return
    found = measure(args.mib << 20, args.kind, args.rounds)
    if args.json:
        print(json.dumps(found, indent=2))
        return
    print(f"{found['mib']} MiB of {found['kind']} data; connecting: "
          + ", ".join(f"{key} {value:.0f} ms" for key, value in found["connect_ms"].items()))  # type: ignore[attr-defined]
    for key, rate in found["rates"].items():  # type: ignore[attr-defined]
        print(f"{key:40} {rate['mb_per_second']:7.0f} MB/s   {rate['wire']:.2f} of the bytes on the wire")
    print(f"{'verified, once it is there':40} {found['verified']:7.0f} MB/s")
    print(f"migrator to the ssh program: {found['ssh_to_program']:.2f}")


if __name__ == "__main__":
    main()
