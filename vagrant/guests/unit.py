#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Starts and stops a systemd unit on a rig host, where systemd is not PID 1, using ExecStart and ExecStop in its file.

    unit.py start|stop|log NAME

It honours those of the unit's settings that decide whether the program works: Type, Environment, StateDirectory, UMask,
DynamicUser, AmbientCapabilities, NoNewPrivileges. The sandbox is systemd's own; tests/test_documents.py has systemd
itself verify it.
"""

from __future__ import annotations

import configparser
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

FOLDERS = ("/etc/systemd/system", "/usr/lib/systemd/system")
RUN = Path("/run/rig-units")
STATE = Path("/var/lib")
DYNAMIC_USER = 61184
"""The first of those that systemd hands out: systemd.exec(5), DynamicUser."""
LIMIT = 90.0  # seconds; systemd's own


def new_parser() -> configparser.ConfigParser:
    """Return a parser for unit files: a key may occur more than once, and is case-sensitive."""
    parser = configparser.ConfigParser(delimiters="=", interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]  # as its documentation says
    return parser


def load(name: str) -> configparser.SectionProxy:
    """Return the [Service] section of a unit."""
    parser = new_parser()
    for folder in FOLDERS:
        if parser.read(f"{folder}/{name}.service"):
            return parser["Service"]
    sys.exit(f"unit.py: no unit {name}.service")


def environment(unit: configparser.SectionProxy) -> dict[str, str]:
    """Return the environment of the unit's program, with its state directory created."""
    found = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "LANG": "C.UTF-8"}
    found |= dict(pair.split("=", 1) for pair in shlex.split(unit.get("Environment", "")))
    if name := unit.get("StateDirectory"):
        folder = STATE / name
        folder.mkdir(mode=int(unit.get("StateDirectoryMode", "755"), 8), parents=True, exist_ok=True)
        if dynamic(unit):
            os.chown(folder, DYNAMIC_USER, DYNAMIC_USER)
        found["STATE_DIRECTORY"] = str(folder)
    return found


def words(line: str, values: dict[str, str]) -> list[str]:
    """Return a command line as systemd splits it: ${X} stays one word, $X alone becomes any number."""
    found: list[str] = []
    for word in shlex.split(line):
        if alone := re.fullmatch(r"\$(\w+)", word):
            found += values.get(alone[1], "").split()
        else:
            found.append(re.sub(r"\$\{(\w+)\}", lambda name: values.get(name[1], ""), word))
    return found


def dynamic(unit: configparser.SectionProxy) -> bool:
    """Tell whether it runs as a user of its own."""
    return unit.getboolean("DynamicUser", False)


def confined(unit: configparser.SectionProxy) -> list[str]:
    """Return what has to precede its command to set its user and its capabilities."""
    if not dynamic(unit):
        return []
    user = [f"--reuid={DYNAMIC_USER}", f"--regid={DYNAMIC_USER}", "--clear-groups", "--no-new-privs"]
    names = [name.removeprefix("CAP_").lower() for name in unit.get("AmbientCapabilities", "").split()]
    wanted = ",".join(["-all", *(f"+{name}" for name in names)])
    return ["setpriv", *user, f"--inh-caps={wanted}", f"--ambient-caps={wanted}", f"--bounding-set={wanted}"]


def start(name: str) -> int:
    """Start a unit; return 0 when it is up: a oneshot has succeeded, any other has reported that it is ready."""
    unit = load(name)
    values = environment(unit)
    umask = int(unit.get("UMask", "22"), 8)
    command = [*confined(unit), *words(unit["ExecStart"], values)]
    if unit.get("Type", "simple") == "oneshot":
        return subprocess.run(command, env=values, umask=umask, check=False).returncode
    RUN.mkdir(mode=0o755, exist_ok=True)
    ready = RUN / f"{name}.ready"
    ready.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified, (RUN / f"{name}.log").open("ab") as log:
        notified.bind(str(ready))
        ready.chmod(0o666)
        values["NOTIFY_SOCKET"] = str(ready)
        running = subprocess.Popen(command, env=values, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                   umask=umask, start_new_session=True)  # fmt: skip
        (RUN / f"{name}.pid").write_text(f"{running.pid}\n", encoding="ascii")
        notified.settimeout(0.1)
        end = time.monotonic() + LIMIT
        while running.poll() is None and time.monotonic() < end:
            try:
                if b"READY=1" in notified.recv(4096).splitlines():
                    return 0
            except TimeoutError:
                pass
    running.kill()
    print((RUN / f"{name}.log").read_text(encoding="utf-8", errors="replace"), file=sys.stderr)
    return running.wait() or 1


def stop(name: str) -> int:
    """Stop a unit: by its ExecStop, or by SIGTERM."""
    unit = load(name)
    if line := unit.get("ExecStop"):
        return subprocess.run(words(line, {}), check=False).returncode
    pid = int((RUN / f"{name}.pid").read_text(encoding="ascii"))
    os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + LIMIT
    while Path(f"/proc/{pid}").exists():
        if time.monotonic() > end:
            sys.exit(f"unit.py: {name} does not end")
        time.sleep(0.02)
    return 0


def log(name: str) -> int:
    """Print what a unit has logged, like `journalctl -u`."""
    print((RUN / f"{name}.log").read_text(encoding="utf-8", errors="replace"), end="")
    return 0


if __name__ == "__main__":
    sys.exit({"start": start, "stop": stop, "log": log}[sys.argv[1]](sys.argv[2]))
