# SPDX-License-Identifier: GPL-2.0-or-later
"""Counts what a container and its migrations occupy on a host. Runs on the host itself, from its standard input:

    python3 - NAME <bench/traces.py

Prints one JSON object that maps what is counted to its amount. Figures about the container itself are included only if
it runs there. bench/endurance.py compares them.
"""

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

POOL = Path("/pool")
CGROUP = Path("/sys/fs/cgroup")
JOURNAL = Path("/var/lib/migrator/journal.db")


def main() -> None:
    """Count, and print it."""
    name = sys.argv[1]
    found = of_the_host()
    pids = payload(name)
    if pids:
        found |= of_the_container(name, pids)
    print(json.dumps(found))


def of_the_host() -> dict[str, int]:
    """What belongs to the host: counts, and bytes if the name says so."""
    cgroups = [path for path in CGROUP.rglob("*") if path.is_dir()]
    pool = os.statvfs(POOL)
    dying = dict(line.split() for line in (CGROUP / "cgroup.stat").read_text().splitlines())
    return {
        "subvolumes": lines("btrfs", "subvolume", "list", str(POOL)),
        "bytes of the disk": (pool.f_blocks - pool.f_bfree) * pool.f_frsize,
        "files of migrations on disk": sum(1 for _ in (POOL / ".migrator").glob("*/*")),
        "files in memory": files([Path("/run/migrator")]),
        "temporary files": files([Path("/tmp"), Path("/run/lxc")]),  # noqa: S108
        "bytes of logs": size([Path("/var/log/migrator")]),
        "cgroups": len(cgroups),
        "cgroups that do not end": int(dying["nr_dying_descendants"]),
        "veths": lines("ip", "-o", "link", "show", "type", "veth"),
        "firewall rules": lines("nft", "list", "ruleset"),
        "addresses that bridges have learnt": sum("permanent" not in line for line in said("bridge", "fdb", "show")),
        "addresses that bridges keep": sum("permanent" in line for line in said("bridge", "fdb", "show")),
        "mounts": len(Path("/proc/self/mounts").read_text().splitlines()),
        "namespaces": namespaces(),
        "processes": sum(1 for pid in everybody() if not is_ours(pid)),
        "open files of sshd": open_files(pid for pid in everybody() if comm(pid) == "sshd"),
        "migrations in the journal": rows("migrations"),
        "events in the journal": rows("events"),
        "bytes of the journal": size([JOURNAL, JOURNAL.with_name("journal.db-wal")]),
    }


def of_the_container(name: str, pids: list[int]) -> dict[str, int]:
    """What belongs to the container that runs here, its LXC monitor included."""
    init = min(pids)
    monitors = [pid for pid in everybody() if cmdline(pid).startswith(f"[lxc monitor] {POOL} {name}")]
    inside = ["nsenter", f"--net=/proc/{init}/ns/net", "--"]
    return {
        "LXC monitors": len(monitors),
        "open files of the monitor": open_files(monitors),
        "bytes of the monitor's memory": resident(monitors),
        "the container's processes": len(pids),
        "its open files": open_files(pids),
        "its mounts": len(Path(f"/proc/{init}/mountinfo").read_text().splitlines()),
        "its memory in bytes": resident(pids),
        "its memory areas": sum(len(Path(f"/proc/{pid}/maps").read_text().splitlines()) for pid in pids),
        "its links": lines(*inside, "ip", "-o", "link"),
        "its addresses": lines(*inside, "ip", "-o", "address"),
        "its routes": lines(*inside, "ip", "route") + lines(*inside, "ip", "-6", "route"),
        "its routing rules": lines(*inside, "ip", "rule") + lines(*inside, "ip", "-6", "rule"),
        "its firewall rules": lines(*inside, "nft", "list", "ruleset"),
        "its sockets": lines(*inside, "ss", "-Hantu"),
    }


def lines(*argv: str) -> int:
    """Count the lines that a program prints."""
    return len(said(*argv))


def said(*argv: str) -> list[str]:
    """Return the lines that a program prints."""
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.splitlines()


def files(folders: Iterable[Path]) -> int:
    """Count what lies below these folders, not counting the folders themselves."""
    return sum(sum(1 for _ in folder.rglob("*")) for folder in folders if folder.is_dir())


def size(paths: Iterable[Path]) -> int:
    """Add up the bytes of these files and of what lies below these folders."""
    found = (path for start in paths for path in ([start] if start.is_file() else start.rglob("*")))
    total = 0
    for path in found:
        with contextlib.suppress(FileNotFoundError):  # it has just been removed
            total += path.stat().st_size if path.is_file() else 0
    return total


def rows(table: str) -> int:
    """Count the rows of a table of the journal."""
    if not JOURNAL.exists():
        return 0
    with contextlib.closing(sqlite3.connect(JOURNAL)) as journal:
        return int(journal.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608


def everybody() -> list[int]:
    """Return the pids of all processes on this host."""
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def is_ours(pid: int) -> bool:
    """Whether a process is this one or one of its ancestors; what came in with it does not belong to the host."""
    here = os.getpid()
    while here > 1:
        if here == pid:
            return True
        here = int(Path(f"/proc/{here}/stat").read_text().rpartition(")")[2].split()[1])
    return False


def comm(pid: int) -> str:
    """Return a process's short name."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def cmdline(pid: int) -> str:
    """Return a process's command line."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def payload(name: str) -> list[int]:
    """Return the pids of the container's processes; there can be more than one payload cgroup, as after a failure."""
    found = CGROUP.glob(f"lxc.payload.{name}*/**/cgroup.procs")
    return [int(pid) for path in found for pid in path.read_text().split()]


def open_files(pids: Iterable[int]) -> int:
    """Count the file descriptors of these processes."""
    found = 0
    for pid in pids:
        with contextlib.suppress(FileNotFoundError):  # it has just ended
            found += len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return found


def resident(pids: Iterable[int]) -> int:
    """Add up the memory of these processes, in bytes (VmRSS in proc_pid_status(5))."""
    found = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                found += int(line.split()[1]) * 1024
    return found


def namespaces() -> int:
    """Count the namespaces that processes of this host live in."""
    found = set()
    for pid in everybody():
        for kind in ("net", "mnt", "uts", "ipc", "pid", "cgroup", "user"):
            with contextlib.suppress(OSError):
                found.add((Path(f"/proc/{pid}/ns") / kind).readlink())
    return len(found)


if __name__ == "__main__":
    main()
