# SPDX-License-Identifier: GPL-2.0-or-later
"""Asks a guest on this host whether its memory and its disk are intact; prints the answer as JSON.

Every answer has `running`, `state`, `intact`; `start` identifies the guest's one start (a guest that was restarted has
another), `count` increases while it runs. Exit status: 0 intact, 1 not intact or not running.

    probe.py NAME [--lxcpath PATH] [--quick] [--wait SECONDS]
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from redis_data import verify
from resp import Connection

MARK = "rig-guest.json"
"""In the guest's root: its kind, and its address if it has one."""


def lxc_info(name: str, lxcpath: str) -> tuple[str, int]:
    """Return the container's state, and its init's pid (0 if it has none)."""
    command = ["lxc-info", "-P", lxcpath, "-n", name, "-s", "-p"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, check=False)
    facts = dict(line.replace(" ", "").split(":", 1) for line in done.stdout.splitlines() if ":" in line)
    return facts.get("State", "ABSENT"), int(facts.get("PID", 0))


def read_counter(directory: Path) -> tuple[str, int, int]:
    """Return start id, count and errors; waits if the guest is just writing them."""
    for _ in range(1000):
        fields = (directory / "count").read_text(encoding="ascii").split()
        if len(fields) == 3:
            return fields[0], int(fields[1]), int(fields[2])
        time.sleep(0.003)
    raise TimeoutError(f"{directory}/count stays empty")


def probe_counter(directory: Path, *, timeout: float = 15) -> dict[str, Any]:
    """Ask a counter: is it still counting, and are its memory, its count and its log from the same instant?"""
    start, first, _ = read_counter(directory)
    deadline = time.monotonic() + timeout
    count, errors = first, 0
    while count < first + 2 and time.monotonic() < deadline:
        time.sleep(0.02)
        start, count, errors = read_counter(directory)
    lines = (directory / "log").read_text(encoding="ascii").split("\n")[:-1]
    starts = len((directory / "starts").read_text(encoding="ascii").split())
    advances = count > first
    # The log is one ahead of the count while a step is being taken; the guest kept counting while we read.
    later = read_counter(directory)[1]
    gapless = lines == [str(number) for number in range(1, len(lines) + 1)] and count <= len(lines) <= later + 1
    told = {"start": start, "starts": starts, "count": count, "errors": errors}
    told |= {"advances": advances, "log_gapless": gapless}
    return told | {"intact": advances and gapless and errors == 0 and starts == 1}


def probe_memory(root: Path, *, timeout: float = 120) -> dict[str, Any]:
    """Make a memory guest verify all of its pages."""
    word = os.urandom(8).hex()
    (root / "verify.new").write_text(word, encoding="ascii")
    (root / "verify.new").rename(root / "verify")
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            told: dict[str, Any] = json.loads((root / "verified").read_text(encoding="ascii"))
            if told.pop("word") == word:
                return told | {"intact": told["bad"] == 0 and told["rolling_bad"] == 0}
        except FileNotFoundError:
            pass
        time.sleep(0.02)
    return {"problem": f"no answer in {timeout:g} s", "intact": False}


def probe_redis(address: str, *, quick: bool) -> dict[str, Any]:
    """Ask a redis guest for its identity, and read back everything that was loaded."""
    server = Connection(address, timeout=10)
    info = bytes(str(server.ask("INFO", "server") or b""), "ascii").decode("unicode_escape")
    run_id = info.partition("run_id:")[2].split()[0]
    told: dict[str, Any] = {
        "start": run_id,
        "count": int(server.ask("GET", "counter") or 0),
        "keys": server.ask("DBSIZE"),
    }
    if quick:
        return told | {"intact": True}
    number, bad = verify(server)
    return told | {"values": number, "bad": bad, "intact": bad == 0 and number > 0}


SYSTEMD = ("systemd", "systemd12")
STOCK = ("sysvinit", "openrc", "tini", "runit", "node")
COUNTER = "var/lib/rig-counter"
"""Where these have their counter, a service of its own."""
UNITS = ("*.service", "*.mount", "*.socket", "*.timer")


def ask(name: str, lxcpath: str, *command: str) -> str:
    """Return what a program prints in a guest."""
    attach = ["lxc-attach", "-P", lxcpath, "-n", name, "--clear-env", "--", *command]
    done = subprocess.run(attach, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.strip()


def probe_stock(name: str, lxcpath: str, root: Path, *, quick: bool) -> dict[str, Any]:
    """Ask any other guest of Debian for its counter, and its processes: those that were restarted have other pids."""
    told = probe_counter(root / COUNTER)
    if quick:
        return told
    lines = [line.split() for line in ask(name, lxcpath, "ps", "-e", "-o", "pid=,comm=").splitlines()]
    return told | {"processes": {pid: program for pid, program in lines if program not in ("ps", "sleep")}}


def probe_systemd(name: str, lxcpath: str, root: Path, *, quick: bool) -> dict[str, Any]:
    """Ask a systemd guest what its init reports, and its counter.

    `units` has the InvocationID of each active one: it is a different one if the unit was restarted.
    """

    told: dict[str, Any] = {"system": ask(name, lxcpath, "systemctl", "is-system-running")}
    if told["system"] not in ("running", "degraded"):
        return told | {"intact": False}
    told |= probe_counter(root / COUNTER)
    if quick:
        return told
    told["boot"] = ask(name, lxcpath, "cat", "/proc/sys/kernel/random/boot_id")
    told["units"], told["failed"] = {}, []
    shown = ask(name, lxcpath, "systemctl", "show", *UNITS, "--property=Id,ActiveState,InvocationID")
    for lines in shown.split("\n\n"):
        unit = dict(line.split("=", 1) for line in lines.splitlines())
        if unit["ActiveState"] == "active":
            told["units"][unit["Id"]] = unit["InvocationID"]
        elif unit["ActiveState"] == "failed":
            told["failed"].append(unit["Id"])
    return told


def probe(name: str, lxcpath: str, *, quick: bool) -> dict[str, Any]:
    """Return everything that a guest reports about itself."""
    state, pid = lxc_info(name, lxcpath)
    told: dict[str, Any] = {"name": name, "running": state == "RUNNING", "state": state, "intact": False}
    root = Path(f"/proc/{pid}/root") if pid else Path(lxcpath, name, "rootfs")
    try:
        guest = json.loads((root / MARK).read_text(encoding="utf-8"))
        told["kind"] = guest["kind"]
        if state != "RUNNING":
            if guest["kind"] != "redis":
                counter = root / COUNTER if guest["kind"] in (*SYSTEMD, *STOCK) else root
                told["start"], told["count"], told["errors"] = read_counter(counter)
            return told
        if guest["kind"] == "redis":
            told.update(probe_redis(guest["address"], quick=quick))
        elif guest["kind"] in SYSTEMD:
            told.update(probe_systemd(name, lxcpath, root, quick=quick))
        elif guest["kind"] in STOCK:
            told.update(probe_stock(name, lxcpath, root, quick=quick))
        else:
            told.update(probe_counter(root))
        parts = [told["intact"]]
        if guest["kind"] in ("memory", "talk") and not quick:
            told["memory"] = probe_memory(root)
            parts.append(told["memory"]["intact"])
        if guest["kind"] == "userns":
            told["user"] = probe_counter(root / "user")
            parts.append(told["user"]["intact"])
        told["intact"] = all(parts)
    except (OSError, ValueError, LookupError) as error:
        told["intact"] = False
        told["problem"] = f"{type(error).__name__}: {error}"
    return told


def main() -> int:
    """Print what the guest reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--lxcpath", default="/pool")
    parser.add_argument("--quick", action="store_true", help="leave the full verification of the memory away")
    parser.add_argument("--wait", type=float, default=0.0, metavar="SECONDS", help="ask until the guest is intact")
    options = parser.parse_args()
    deadline = time.monotonic() + options.wait
    told = probe(options.name, options.lxcpath, quick=options.quick)
    while not told["intact"] and time.monotonic() < deadline:
        time.sleep(0.05)
        told = probe(options.name, options.lxcpath, quick=options.quick)
    print(json.dumps(told))
    return 0 if told["intact"] else 1


if __name__ == "__main__":
    sys.exit(main())
