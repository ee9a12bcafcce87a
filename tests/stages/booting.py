# SPDX-License-Identifier: GPL-2.0-or-later
"""This host's lxc-autostart, under way or not."""

from __future__ import annotations

from pathlib import Path

import pytest

from migrator.config import container_config
from migrator.copies import autostart
from migrator.record.journal import Journal

PID = 4242
AGAIN = "Next: once that has ended: migrator create-dump web -d root@hostb"


class Boot:
    """Its lxc-autostart, and the fence of each time that somebody has looked for it."""

    def __init__(self) -> None:
        self.under_way = False
        self.fences: list[str] = []

    def look(self, config: Path) -> int | None:
        self.fences.append(container_config.fence_of(config.read_text()))
        return PID if self.under_way else None


@pytest.fixture
def boot(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> Boot:
    found = Boot()
    monkeypatch.setattr(autostart, "under_way", lambda: found.look(journal.path.parent / "web" / "config"))
    return found
