# SPDX-License-Identifier: GPL-2.0-or-later
"""Files in /proc from which the facts about processes are read (proc(5)).

A process may end while it is looked at: then there is nothing to read, and that is not an error.
"""

# Plain strings: creating a Path for each of ten thousand reads of /proc would double their cost.
# ruff: noqa: PTH115, PTH123, PTH208

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Collection


@dataclasses.dataclass(frozen=True)
class Status:
    """What we use of /proc/PID/status (proc_pid_status(5))."""

    pid: int
    inside: int  # the pid in the innermost PID namespace
    name: str
    state: str  # one letter
    parent: int
    tracer: int
    uids: tuple[int, ...]  # real, effective, saved, file system; as seen from this host
    session_inside: int  # the session's id in the innermost PID namespace; 0 if its leader is outside
    levels: int  # how many PID namespaces it is in, counted from ours
    threads: int
    memory: int  # bytes, anonymous and shared, in memory or swapped out


def parse_status(text: str) -> Status | None:
    """The status, or None if the text is not one (the process ended while it was read)."""
    status = {}
    for line in text.split("\n"):  # a process may put any other line separator into its name
        key, _, value = line.partition(":")
        status[key] = value.strip()
    try:
        return Status(
            pid=int(status["Pid"]), inside=int(status.get("NSpid", status["Pid"]).split()[-1]),
            name=status["Name"], state=status["State"][:1], parent=int(status["PPid"]),
            tracer=int(status["TracerPid"]), uids=tuple(int(uid) for uid in status["Uid"].split()),
            session_inside=int(status.get("NSsid", "1").split()[-1]), levels=len(status.get("NSpid", "0").split()),
            threads=int(status.get("Threads", "1")),
            memory=1024 * sum(int(status.get(key, "0").split()[0]) for key in ("RssAnon", "RssShmem", "VmSwap")),
        )
    except (KeyError, ValueError, IndexError):
        return None


def read_text(path: str) -> str:
    """A file in /proc, or "" if it cannot be read: the process has ended, or we may not.

    Not for one that a container can make as large as it likes: see `mount_tables`.
    """
    try:
        with open(path, "rb") as file:
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


# Not longer than UNIT_NAME_MAX in systemd, and never an option.
_UNIT = re.compile(r"[A-Za-z0-9:_.\\@][A-Za-z0-9:_.\\@-]{0,246}\.(?:service|scope)", re.ASCII)


def unit_of(cgroup: str) -> str:
    """Which unit of a systemd in a container a process is of, by its /proc/PID/cgroup; "" for PID 1's and for none.

    Of a user's own unit that of his whole manager, user@1000.service: only this one the container's root can restart.
    """
    path = next((line.partition("::")[2] for line in cgroup.split("\n") if line.startswith("0::")), "")
    _, _, inside = path.partition("/lxc.payload")
    found = next(filter(_UNIT.fullmatch, inside.split("/")[1:]), "")
    return "" if found == "init.scope" else found


def pipe_holders(pipes: Collection[str], members: Collection[int]) -> dict[str, str]:
    """Which of the pipes a process outside the container has open, and that process."""
    found: dict[str, str] = {}
    for pid in os.listdir("/proc") if pipes else ():
        if not pid.isdecimal() or int(pid) in members:
            continue
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                target = link(f"/proc/{pid}/fd/{name}")
                if target in pipes and target not in found:
                    found[target] = f"{read_text(f'/proc/{pid}/comm').strip()} (process {pid})"
    return found


def status_of(pid: int) -> Status | None:
    """A process's status now; None if it has ended.

    For one that is being reaped at this very moment, the kernel still gives some of it, with 0 for its session, its
    parent and its own ids (__unhash_process in kernel/exit.c removes them): whoever asks again does not find it any
    more.
    """
    status = parse_status(read_text(f"/proc/{pid}/status"))
    if status and not (status.session_inside and status.parent and status.inside):
        status = parse_status(read_text(f"/proc/{pid}/status"))
    return status if status and status.state != "X" else None


def state_of(pid: int) -> str:
    """A process's state now, one letter; "" if it has ended."""
    status = status_of(pid)
    return status.state if status else ""


def socket_protocol(path: str) -> str:
    """A socket's protocol, as named in /proc/net/protocols; "" if it cannot be determined."""
    try:
        return os.getxattr(path, "system.sockprotoname").rstrip(b"\0").decode(errors="replace")
    except FileNotFoundError:  # closed meanwhile
        raise
    except OSError:
        return ""
