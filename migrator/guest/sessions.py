# SPDX-License-Identifier: GPL-2.0-or-later
"""Who is logged in to a container, as far as its systemd's cgroups tell."""

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
    """One login, and its first process that was seen."""

    scope: str
    pid: int
    task: str

    @property
    def shown(self) -> str:
        return f"{self.scope} ({self.task!r}, process {self.pid})"

    def ends_with(self, units: Collection[str]) -> bool:
        """Whether a restart of these units ends it: it was begun at a getty, which has become `login`."""
        return self.task == "login" and any(map(_GETTY.fullmatch, units))


def found(pids: Collection[int]) -> list[Session]:
    """The sessions that these processes are of, some of them where there are very many."""
    seen: dict[str, Session] = {}
    for pid in sorted(pids):
        scope = unit_of(read_text(f"/proc/{pid}/cgroup"))
        if _SCOPE.fullmatch(scope) and scope not in seen and len(seen) < SESSIONS_MAX:
            seen[scope] = Session(scope, pid, read_text(f"/proc/{pid}/comm").strip())
    return list(seen.values())
