# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether migrator has cleaned up after itself, but for what a test says that it leaves."""

from __future__ import annotations

from harness.rig import Rig


class CleanHosts:
    """What a test wants to have overlooked at its end."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self._allowed: set[str] = set()

    def allow(self, *kinds: str) -> None:
        """Leftovers of these kinds are meant to be: `snapshot` after a migration that has succeeded, for example."""
        self._allowed |= set(kinds)

    def unexpected(self) -> list[str]:
        """What has been left on the hosts and is not allowed."""
        return [line for line in self.rig.leftovers() if line.split(": ")[1] not in self._allowed]
