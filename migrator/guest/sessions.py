# SPDX-License-Identifier: GPL-2.0-or-later
"""Who is logged in to a container, judging by the session scopes that its systemd has made."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection

from migrator.host.proc import read_text, unit_of

SESSIONS_MAX = 100
_SCOPE = re.compile(r"session-([A-Za-z0-9]+)\.scope", re.ASCII)
_MANAGER = re.compile(r"user@([0-9]+)\.service", re.ASCII)
_PIPE = re.compile(r"/[A-Za-z0-9]+\.ref", re.ASCII)  # in /run/systemd/sessions, and in /run/systemd/inhibit
_GETTY = re.compile(r"(console-getty|(container-)?getty@.*|serial-getty@.*)\.service", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Session:
    """A login session."""

    scope: str  # its unit
    pid: int  # the process with the lowest id that was seen in it
    task: str  # the name of that process

    @property
    def shown(self) -> str:
        return f"{self.scope} ({self.task!r}, process {self.pid})"

    def ends_with(self, units: Collection[str]) -> bool:
        """Whether restarting these units ends it: it does if it began at a getty, which turns into `login`."""
        return self.task == "login" and any(map(_GETTY.fullmatch, units))


def is_pipe(path: str) -> bool:
    """Whether this is the path of a pipe to systemd-logind, in a mount of the folder that it is in that is gone."""
    return bool(_PIPE.fullmatch(path))


def end(unit: str) -> list[str]:
    """The command that ends a session, or all of a user's by the unit of his systemd; none for any other unit."""
    if scope := _SCOPE.fullmatch(unit):
        return ["loginctl", "terminate-session", scope[1]]
    if manager := _MANAGER.fullmatch(unit):
        return ["loginctl", "terminate-user", manager[1]]
    return []


def found(pids: Collection[int]) -> list[Session]:
    """The sessions that these processes belong to, at most SESSIONS_MAX of them."""
    seen: dict[str, Session] = {}
    for pid in sorted(pids):
        scope = unit_of(read_text(f"/proc/{pid}/cgroup"))
        if _SCOPE.fullmatch(scope) and scope not in seen and len(seen) < SESSIONS_MAX:
            seen[scope] = Session(scope, pid, read_text(f"/proc/{pid}/comm").strip())
    return list(seen.values())
