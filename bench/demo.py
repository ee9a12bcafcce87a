# SPDX-License-Identifier: GPL-2.0-or-later
"""`make demo`: a running container leaves one host and carries on on another, its client still connected.

Two hosts are made on this machine (vagrant/rig). One runs a Redis server in a container; an outside client increments
a counter in it through one TCP connection, which is never opened again. The container is moved stage by stage, by the
commands that one would type, and back by the one command that does all of that. Then the same between two hosts that
are both behind NAT (bench/demo_nat.py). At last the figures: a table, and build/demo.json. Then the hosts are gone.

Exit status: 0 all is as promised, 1 something was lost or took too long, 2 a command failed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from bench import demo_nat, waits
from bench.hosts import ENVIRONMENT, NAME, RIG, TREE, DemoFailed, bold, frozen_ms, migration, on, rig, title, two_hosts

REPORT = TREE / "build" / "demo.json"

ADDRESS = "10.0.3.100"
STAGES: tuple[tuple[str, str, list[str]], ...] = (
    ("check", "hosta", ["-d", "root@hostb"]),
    ("prepare-data", "hosta", ["-d", "root@hostb"]),
    ("import-data", "hostb", []),
    ("create-dump", "hosta", ["-d", "root@hostb"]),
    ("restore-dump", "hostb", []),
    ("finish", "hosta", []),
)

# What the demo promises: by hand, where two commands lie between freeze and thaw, and in one command.
LONGEST_GAP_MS = 2500.0
FROZEN_MS = 1500.0
ONE_COMMAND_LONGEST_GAP_MS = 1000.0
ONE_COMMAND_FROZEN_MS = 600.0


def main() -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # so that the hosts go then too
    if os.geteuid() != 0:
        print("The demo needs root: it makes namespaces, loop devices and containers.", file=sys.stderr)
        return 2
    try:
        title("Two hosts on this machine")
        with two_hosts():
            figures = demonstrate()
        title("The same two hosts, each behind a NAT of its own: SSH does not get through")
        with two_hosts("--nat-a", demo_nat.NAT, "--nat-b", demo_nat.NAT):
            figures["nat"] = demo_nat.demonstrate()
    except (DemoFailed, subprocess.SubprocessError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(figures, indent=2) + "\n")
    title("Figures")
    print(table(figures))
    print(f"These figures are in {REPORT.relative_to(TREE)} too.")
    broken = broken_promises(figures)
    for line in broken:
        print(f"demo: {line}", file=sys.stderr)
    return 1 if broken else 0


# --- the move -------------------------------------------------------------------------------------------------


def demonstrate() -> dict[str, Any]:
    """Move the container under its client; returns the figures."""
    title("A container with a Redis server that holds 64 MiB, and a client on a third host")
    rig("guest", "hosta", NAME, "redis", "--ip", ADDRESS)
    on("hosta", "lxc-ls", "--fancy")
    with counting_client() as client:
        time.sleep(1)
        title("The move, stage by stage")
        seconds = {}
        for stage, host, arguments in STAGES:
            begun = time.monotonic()
            on(host, "migrator", stage, NAME, *arguments)
            seconds[stage] = time.monotonic() - begun
        on("hosta", "lxc-ls", "--fancy")
        on("hostb", "lxc-ls", "--fancy")
        source, destination = (migration(host) for host in ("hosta", "hostb"))
        title("And back, in one command")
        begun = time.monotonic()
        on("hostb", "migrator", "migrate", NAME, "-d", "root@hosta")
        seconds_back = time.monotonic() - begun
        time.sleep(2)
    title("Afterwards")
    seen = client[0]
    probe = verified("hosta")
    back, arrived = (migration(host) for host in ("hostb", "hosta"))
    if probe["count"] < seen["requests"]:
        seen["lost"] += seen["requests"] - probe["count"]
    return {
        "frozen_ms": frozen_ms(source, destination),
        "client": {key: seen[key] for key in ("requests", "lost", "wrong", "longest_gap_ms")},
        "bytes": {key: source["bytes"][key] for key in ("full", "increment", "memory")},
        "stages": [{"name": stage, "seconds": round(taken, 3)} for stage, taken in seconds.items()],
        "one_command": {"frozen_ms": frozen_ms(back, arrived), "seconds": round(seconds_back, 3),
                        "longest_gap_ms": waits.longest(seen["gaps"], back["frozen_at"], arrived["restored_at"])},
        "load": round(os.getloadavg()[0], 2),
        "values_verified": probe["values"],
    }


@contextlib.contextmanager
def counting_client() -> Iterator[list[dict[str, Any]]]:
    """A client that asks without pause while the block runs; the list then holds what it saw."""
    command = ["python3", "/opt/rig/guests/redis_client.py", ADDRESS, "--gaps", waits.WORTH_A_NOTE]
    print(bold(f"client# {shlex.join(command)} &"), flush=True)
    seen: list[dict[str, Any]] = []
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen([RIG, "exec", "client", "--", *command], env=ENVIRONMENT, stdin=subprocess.DEVNULL,
                                   stdout=out)
        try:
            yield seen
            process.terminate()
            process.wait(40)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        out.seek(0)
        text = out.read().decode()
    if not text:
        raise DemoFailed(f"the client ended with exit status {process.returncode} and told nothing")
    seen.append(json.loads(text))
    if seen[0]["problem"]:
        raise DemoFailed(f"the client's connection broke: {seen[0]['problem']}")


def verified(host: str) -> dict[str, Any]:
    """Read every value back from the server where it is now."""
    text = on(host, "python3", "/opt/rig/guests/probe.py", NAME, show=False)
    probe: dict[str, Any] = json.loads(text)
    if not probe["intact"]:
        raise DemoFailed(f"the server is not intact: {text}")
    print(f"All {probe['values']} values are intact, the counter stands at {probe['count']}.")
    return probe


# --- the figures ----------------------------------------------------------------------------------------------


def broken_promises(figures: dict[str, Any]) -> list[str]:
    client, one_command = figures["client"], figures["one_command"]
    broken = []
    if client["lost"] or client["wrong"]:
        broken.append(f"the client lost {client['lost']} answers, and {client['wrong']} were wrong")
    for what, value, promised in (
        ("the client waited", client["longest_gap_ms"], LONGEST_GAP_MS),
        ("the container was frozen", figures["frozen_ms"], FROZEN_MS),
        ("in one command the client waited", one_command["longest_gap_ms"], ONE_COMMAND_LONGEST_GAP_MS),
        ("in one command the container was frozen", one_command["frozen_ms"], ONE_COMMAND_FROZEN_MS),
    ):
        if value > promised:
            broken.append(f"{what} for {value} ms, {promised:g} are promised where nothing else runs (the load average"
                          f" is {figures['load']} on {os.cpu_count()} cores)")
    return broken


def table(figures: dict[str, Any]) -> str:
    client, sent = figures["client"], figures["bytes"]
    rows = [
        ("frozen, from freeze to thaw", f"{figures['frozen_ms']:.0f} ms"),
        ("client: requests", f"{client['requests']}"),
        ("client: answers lost / wrong", f"{client['lost']} / {client['wrong']}"),
        ("client: longest wait for an answer", f"{client['longest_gap_ms']:.0f} ms"),
        ("sent while it ran: disk", mebibytes(sent["full"])),
        ("sent while it was frozen: disk changes", mebibytes(sent["increment"])),
        ("sent while it was frozen: memory", mebibytes(sent["memory"])),
        *((f"time taken by {stage['name']}", f"{stage['seconds']:.2f} s") for stage in figures["stages"]),
        ("back in one command: frozen", f"{figures['one_command']['frozen_ms']:.0f} ms"),
        ("back in one command: longest wait", f"{figures['one_command']['longest_gap_ms']:.0f} ms"),
        ("back in one command: time taken", f"{figures['one_command']['seconds']:.2f} s"),
        *demo_nat.rows(figures["nat"]),
    ]
    left = max(len(name) for name, _ in rows)
    right = max(len(value) for _, value in rows)
    return "\n".join(f"  {name.ljust(left)}  {value.rjust(right)}" for name, value in rows)


def mebibytes(count: int) -> str:
    return f"{count / (1 << 20):.1f} MiB"


if __name__ == "__main__":
    sys.exit(main())
