# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a migration's things lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from migrator.record import image_folders
from migrator.record.journal import Migration
from migrator.record.migration_paths import Layout


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    monkeypatch.setattr(image_folders, "RUNTIME", tmp_path / "run" / "migrator")
    for name in ("run", "pool"):
        (tmp_path / name).mkdir()
    return Layout(tmp_path / "pool", "web", "0badc0de")


def layout_of(migration: Migration) -> Layout:
    return Layout.of(migration)
