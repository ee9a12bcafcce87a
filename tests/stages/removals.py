# SPDX-License-Identifier: GPL-2.0-or-later
"""What has arrived is removed where LXC must not be asked."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from migrator.criu import criu_dump, restore
from migrator.host import btrfs, lxc
from migrator.record.journal import Migration


@pytest.fixture(autouse=True)
def no_lxc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing here is a subvolume, or a process of LXC's or CRIU's; LXC itself is not to be asked."""

    def asked() -> None:
        raise AssertionError("LXC was asked")

    monkeypatch.setattr(lxc, "_lxc", asked)
    monkeypatch.setattr(lxc, "CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(lxc, "END_LIMIT", 0.05)
    monkeypatch.setattr(lxc, "STOP_LIMIT", 0.05)
    monkeypatch.setattr(btrfs, "is_subvolume", lambda _: False)
    monkeypatch.setattr(criu_dump, "processes", lambda _: [])
    monkeypatch.setattr(criu_dump, "LOG_FOLDER", tmp_path / "log")
    monkeypatch.setattr(restore, "clear", lambda _: None)


def asked(migration: Migration) -> Any:
    return SimpleNamespace(migration=lambda _: migration, find=lambda _: migration, end_behind=lambda: None)
