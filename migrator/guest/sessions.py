# SPDX-License-Identifier: GPL-2.0-or-later
"""Who is logged in to a container, judging by the session scopes that its systemd has made."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection

from migrator.host.proc import read_text, unit_of

SESSIONS_MAX = 100
_SCOPE = re.compile(r"session-[A-Za-z0-9]+\.scope", re.ASCII)
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


def found(pids: Collection[int]) -> list[Session]:
    """The sessions that these processes belong to, at most SESSIONS_MAX of them."""
    seen: dict[str, Session] = {}
    for pid in sorted(pids):
        scope = unit_of(read_text(f"/proc/{pid}/cgroup"))
        if _SCOPE.fullmatch(scope) and scope not in seen and len(seen) < SESSIONS_MAX:
            seen[scope] = Session(scope, pid, read_text(f"/proc/{pid}/comm").strip())
    return list(seen.values())
