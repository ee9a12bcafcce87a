# SPDX-License-Identifier: GPL-2.0-or-later
"""The last part of `make demo`: the same move between two hosts that are both behind NAT.

They are paired once, with a code that one host shows and the other is given. Then the container moves through a tunnel
that passes through both NATs. Its addresses stay behind with the network that they belong to, so no client's connection
is watched here: what is checked is the server's memory and disk, from the inside.
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

from bench import figures, floor
from bench.figures import NatMove
from bench.hosts import ENVIRONMENT, NAME, RIG, DemoFailed, left, migration, on, probe, rig, say, title, typed, wait_for

NAT = "port-restricted"
ADDRESS = "10.0.3.100"
LIMIT = 300.0  # seconds; ends what hangs, and judges nothing
NO_CONNECTION = 255  # ssh's exit status (ssh(1))


def demonstrate() -> NatMove:
    """Pair, connect, move and verify; returns the figures."""
    rig("guest", "hosta", NAME, "redis", "--ip", ADDRESS)
    floor.make_twin("hosta")
    on("hosta", "ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=2", "hostb", "true", fine=(NO_CONNECTION,))
    before = probe("hosta", "--quick")
    print("\nWhat CRIU alone needs, as before:", flush=True)
    measured = [floor.measure("hosta")]
    title("Pair the two hosts, once")
    say("""One shows a code, which its administrator reads out to the other's. It is valid for one try. After that each
        host knows the other's keys, and no code is needed any more.""")
    pair()
    with agent():
        title("The move, through a tunnel that goes through both NATs")
        say("""Both send packets outwards until each router takes the other's for answers; then there is a path between
            them that no third party can read. The rendezvous only tells each host where the other is.""")
        on("hosta", "migrator", "tunnel", "ping", "hostb")
        path = json.loads(on("hosta", "migrator", "tunnel", "ping", "hostb", "--json", show=False))
        begun = time.monotonic()
        on("hosta", "migrator", "migrate", NAME, "-d", "peer:hostb")
        seconds = time.monotonic() - begun
    journals = migration("hosta"), migration("hostb")
    server = figures.server_of(before, probe("hostb"))
    print(f"\nReading back all values of the server on hostb: {figures.in_words(server)}", flush=True)
    print("\nWhat the move has kept can be removed now:", flush=True)
    for host in ("hosta", "hostb"):
        on(host, "migrator", "cleanup", NAME)
    print("\nWhat CRIU alone needs, once more:", flush=True)
    measured.append(floor.measure("hosta"))
    rounds = floor.together(measured)
    return {
        **figures.move(*journals, seconds, rounds),
        "path": path["path"], "reason": path["reason"], "rtt_ms": path["rtt_ms"], "connect_ms": path["connect_ms"],
        "mtu": path["mtu"], "floor": rounds, "server": server, "left": left("hosta", "hostb"),
    }


def pair() -> None:
    """hosta shows a code, hostb is given it."""
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder, "said")
        with said.open("wb") as out:
            typed("hosta", "migrator", "peer", "invite", "--name", "hostb")
            inviting = started("hosta", "migrator", "peer", "invite", "--name", "hostb", "--json", "-q", out=out)
            try:
                code = shown_code(said, inviting)
                print(code, flush=True)
                on("hostb", "migrator", "peer", "join", code, "--name", "hosta", "--allow", "receive")
                if inviting.wait(LIMIT):
                    raise DemoFailed("the invitation failed")
            finally:
                if inviting.poll() is None:
                    inviting.kill()
                    inviting.wait()


def shown_code(said: Path, inviting: subprocess.Popen[bytes]) -> str:
    """The code that `peer invite --json` shows, once it has printed it."""
    codes: list[str] = []

    def looked() -> bool:
        ended = inviting.poll() is not None  # checked first: whatever it printed last is there then
        for line in said.read_text().splitlines():
            with contextlib.suppress(ValueError):
                codes.extend(str(data["code"]) for data in [json.loads(line)] if "code" in data)
        return bool(codes) or ended

    wait_for(looked, limit=LIMIT)
    if not codes:
        raise DemoFailed("no code was shown")
    return codes[0]


@contextlib.contextmanager
def agent() -> Iterator[None]:
    """hostb waits for its peers while the block runs."""
    typed("hostb", "migrator", "agent", behind=" &")
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder, "said")
        with said.open("wb") as out:
            process = subprocess.Popen([RIG, "exec", "hostb", "--", "migrator", "agent"], env=ENVIRONMENT,
                                       stdin=subprocess.DEVNULL, stderr=out)
        try:
            # It reports where it waits.
            wait_for(lambda: said.stat().st_size or process.poll() is not None, limit=LIMIT)
            print(said.read_text(), end="", flush=True)
            if process.poll() is not None or not said.stat().st_size:
                raise DemoFailed("the agent does not wait for its peers")
            yield
        finally:
            process.terminate()
            try:
                process.wait(LIMIT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def started(host: str, *command: str, out: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([RIG, "exec", host, "--", *command], env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=out)
