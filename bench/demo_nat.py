# SPDX-License-Identifier: GPL-2.0-or-later
"""The second half of `make demo`: the same move between two hosts that are both behind NAT.

They are paired once, by a code that one host shows and the other is given. Then the container moves through a tunnel
that goes through both NATs. Its addresses stay behind with the network that they belong to, so nobody's connection is
watched here: what is checked is the server's memory and disk, inside.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.hosts import ENVIRONMENT, NAME, RIG, DemoFailed, bold, frozen_ms, migration, on, rig, title

NAT = "port-restricted"
ADDRESS = "10.0.3.100"
LIMIT = 30.0  # seconds


def demonstrate() -> dict[str, Any]:
    """Pair, connect, move and verify; returns the figures."""
    rig("guest", "hosta", NAME, "redis", "--ip", ADDRESS)
    if started("hosta", "timeout", "5", "ssh", "-o", "ConnectTimeout=3", "hostb", "true").wait() == 0:
        raise DemoFailed("SSH gets through: these hosts are not behind NAT")
    title("Pair them, once")
    pair()
    before = probe("hosta")
    with agent():
        title("The move, through a tunnel that goes through both NATs")
        on("hosta", "migrator", "tunnel", "ping", "hostb")
        path = json.loads(on("hosta", "migrator", "tunnel", "ping", "hostb", "--json", show=False))
        begun = time.monotonic()
        on("hosta", "migrator", "migrate", NAME, "-d", "peer:hostb")
        seconds = time.monotonic() - begun
    after = probe("hostb")
    if not after["intact"] or after["start"] != before["start"] or after["values"] != before["values"]:
        raise DemoFailed(f"the server is not what it was: {before} became {after}")
    print(f"All {after['values']} values are intact on hostb, and the server was not started anew.")
    source = migration("hosta")
    return {
        "path": path["path"], "reason": path["reason"], "rtt_ms": path["rtt_ms"], "connect_ms": path["connect_ms"],
        "mtu": path["mtu"], "frozen_ms": frozen_ms(source, migration("hostb")), "seconds": round(seconds, 3),
        "bytes": {key: source["bytes"][key] for key in ("full", "increment", "memory")},
        "values_verified": after["values"],
    }


def rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """The figures for the table."""
    return [
        ("across two NATs: path", str(figures["path"])),
        ("across two NATs: time to connect", f"{figures['connect_ms']:.0f} ms"),
        ("across two NATs: frozen", f"{figures['frozen_ms']:.0f} ms"),
        ("across two NATs: time taken", f"{figures['seconds']:.2f} s"),
    ]


def pair() -> None:
    """hosta shows a code, hostb is given it."""
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder, "said")
        with said.open("wb") as out:
            print(bold("hosta# migrator peer invite --name hostb"), flush=True)
            inviting = started("hosta", "migrator", "peer", "invite", "--name", "hostb", "--json", "-q", out=out)
            try:
                code = shown_code(said, inviting)
                print(code, flush=True)
                on("hostb", "migrator", "peer", "join", code, "--name", "hosta")
                if inviting.wait(LIMIT):
                    raise DemoFailed("the invitation failed")
            finally:
                if inviting.poll() is None:
                    inviting.kill()
                    inviting.wait()


def shown_code(said: Path, inviting: subprocess.Popen[bytes]) -> str:
    """The code of `peer invite --json`, once it has printed it."""
    end = time.monotonic() + LIMIT
    while time.monotonic() < end and inviting.poll() is None:
        for line in said.read_text().splitlines():
            with contextlib.suppress(ValueError):
                data = json.loads(line)
                if "code" in data:
                    return str(data["code"])
        time.sleep(0.05)
    raise DemoFailed("no code was shown")


@contextlib.contextmanager
def agent() -> Iterator[None]:
    """hostb waits for its peers while the block runs."""
    print(bold("hostb# migrator agent &"), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder, "said")
        with said.open("wb") as out:
            process = subprocess.Popen([RIG, "exec", "hostb", "--", "migrator", "agent"], env=ENVIRONMENT,
                                       stdin=subprocess.DEVNULL, stderr=out)
        try:
            end = time.monotonic() + LIMIT
            while not said.stat().st_size and time.monotonic() < end:  # it says where it waits
                time.sleep(0.05)
            print(said.read_text(), end="", flush=True)
            yield
        finally:
            process.terminate()
            try:
                process.wait(LIMIT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def probe(host: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(on(host, "python3", "/opt/rig/guests/probe.py", NAME, show=False))
    return found


def started(host: str, *command: str, out: Any = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    return subprocess.Popen([RIG, "exec", host, "--", *command], env=ENVIRONMENT, stdin=subprocess.DEVNULL,
                            stdout=out, stderr=subprocess.DEVNULL if out == subprocess.DEVNULL else None)
