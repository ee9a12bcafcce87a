# SPDX-License-Identifier: GPL-2.0-or-later
"""What all tests of the stages share."""

from __future__ import annotations

import pytest

from migrator.copies import autostart


@pytest.fixture(autouse=True)
def _no_autostart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here hangs on what this machine starts, nor on tests/migrator/copies/test_autostart.py, which may run
    beside.
    """
    monkeypatch.setattr(autostart, "under_way", lambda: None)
