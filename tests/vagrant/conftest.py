# SPDX-License-Identifier: GPL-2.0-or-later
"""Lets the tests import `riglib`, which is no part of the package, and keeps them off the rigs that run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from harness.rig import VAGRANT

sys.path.insert(0, str(VAGRANT))


@pytest.fixture(autouse=True)
def _no_rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make sure that no running rig is seen."""
    from riglib import paths

    monkeypatch.setattr(paths, "RUN", str(tmp_path))
