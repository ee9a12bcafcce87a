# SPDX-License-Identifier: GPL-2.0-or-later
# ruff: noqa: PTH120, PTH123
"""Where one rig instance keeps its things.

Several can run side by side: the environment variable MIGRATOR_RIG names the instance. Strings, not pathlib: see
enter.py.
"""

import os

from riglib.errors import NotRunning, RigError

VAGRANT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
TREE = os.path.dirname(VAGRANT)
CACHE = "/var/cache/migrator-rig"
INSTANCE = os.environ.get("MIGRATOR_RIG") or "rig"
NAME = "migrator-rig" if INSTANCE == "rig" else f"migrator-rig-{INSTANCE}"

if not (INSTANCE.isascii() and INSTANCE.replace("-", "").isalnum() and len(INSTANCE) <= 32):
    raise SystemExit("rig: MIGRATOR_RIG may hold letters, digits and dashes only, 32 at most")

RUN = f"/run/{NAME}"
"""Small files: the state, the pid of each host."""
LIB = f"/var/lib/{NAME}"
"""Large files: the upper layers and the pools."""
LOCK = f"/run/lock/{NAME}.lock"


def cgroup2() -> str:
    """Return where this machine has mounted the unified cgroup hierarchy."""
    with open("/proc/self/mounts", encoding="ascii", errors="replace") as mounts:
        for line in mounts:
            fields = line.split()
            if fields[2] == "cgroup2":
                return fields[1]
    raise RigError("this machine has no cgroup2 hierarchy mounted", hint="mount -t cgroup2 cgroup2 /sys/fs/cgroup")


def cgroup(host: str = "") -> str:
    """Return the folder of the rig's own cgroup, or of one host's part of it."""
    return f"{cgroup2()}/{NAME}/{host}".rstrip("/")


def host_pid(host: str) -> int:
    """Return the pid of a host's init, verified to be that process and not a later one with the same number."""
    try:
        with open(f"{RUN}/{host}.pid", encoding="ascii") as file:
            pid, start = file.read().split()
        if start != start_time(int(pid)):
            raise NotRunning(f"{host} is dead", hint="vagrant/rig up")
        return int(pid)
    except (OSError, ValueError):
        raise NotRunning(f"no host '{host}' is running in the rig '{INSTANCE}'", hint="vagrant/rig up") from None


def machine(host: str) -> str:
    """Return the file that names the QEMU of a host that is a virtual machine; others have none."""
    return f"{RUN}/{host}.machine"


def machine_pid(host: str) -> int:
    """Return the pid of a machine's QEMU, verified like `host_pid`; 0 if the host is no machine."""
    try:
        with open(machine(host), encoding="ascii") as file:
            pid, start = file.read().split()
    except OSError:
        return 0
    try:
        if start == start_time(int(pid)):
            return int(pid)
    except OSError:
        pass
    raise NotRunning(f"the machine of {host} is dead", hint="vagrant/rig up --vm")


def start_time(pid: int) -> str:
    """Return when a process started: together with its pid this identifies it for good. A zombie counts as gone."""
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()
    if fields[0] in "ZX":
        raise ProcessLookupError(pid)
    return fields[19]
