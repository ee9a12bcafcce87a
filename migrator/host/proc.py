# SPDX-License-Identifier: GPL-2.0-or-later
"""Files of /proc that the facts about processes are read from (proc(5)).

A process may end while it is looked at: then there is nothing to read, and that is no error.
"""

# Plain strings: a Path for each of ten thousand looks into /proc would double their cost.
# ruff: noqa: PTH115, PTH123

from __future__ import annotations

import dataclasses
import os


@dataclasses.dataclass(frozen=True)
class Status:
    """What we use of /proc/PID/status (proc_pid_status(5))."""

    pid: int
    inside: int  # the process's id in the innermost PID namespace
    name: str
    state: str  # one letter
    parent: int
    tracer: int
    uids: tuple[int, ...]  # real, effective, saved, file system; as this host sees them
    session_inside: int  # the session's id in the innermost PID namespace; 0 when its leader is outside
    levels: int  # how many PID namespaces it is in, counted from ours
    threads: int
    memory: int  # bytes, anonymous and shared


def parse_status(text: str) -> Status | None:
    """The status, or None if the text is not one (the process ended while it was read)."""
    status = {}
    for line in text.split("\n"):  # a process may put any other line's end into its name
        key, _, value = line.partition(":")
        status[key] = value.strip()
    try:
        return Status(
            pid=int(status["Pid"]), inside=int(status.get("NSpid", status["Pid"]).split()[-1]),
            name=status["Name"], state=status["State"][:1], parent=int(status["PPid"]),
            tracer=int(status["TracerPid"]), uids=tuple(int(uid) for uid in status["Uid"].split()),
            session_inside=int(status.get("NSsid", "1").split()[-1]), levels=len(status.get("NSpid", "0").split()),
            threads=int(status.get("Threads", "1")),
            memory=1024 * sum(int(status.get(key, "0").split()[0]) for key in ("RssAnon", "RssShmem")),
        )
    except (KeyError, ValueError, IndexError):
        return None


def read_text(path: str) -> str:
    """A file of /proc, or "" when it cannot be read: the process has ended, or we may not."""
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
