# SPDX-License-Identifier: GPL-2.0-or-later
"""A container that was restored here and is stopped now."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from migrator.copies import origins
from migrator.copies.origins import Whose
from migrator.host import lxc
from migrator.record import lxc_disk
from migrator.record.journal import Migration
from migrator.record.states import Event


@pytest.fixture
def here(restoring: Migration, acts: list[str], monkeypatch: pytest.MonkeyPatch) -> Migration:
    """It was restored, and lost its fence as whatever is; then the host lost its power. Nobody has a boot in common."""
    lxc_says(monkeypatch, "STOPPED")
    monkeypatch.setattr(lxc, "runs_in", lambda *_: False)
    monkeypatch.setattr(lxc, "container_processes", lambda _: [])
    monkeypatch.setattr(lxc_disk, "is_removed", lambda _: False)
    monkeypatch.setattr(origins, "whose", lambda _: Whose.FOREIGN)
    folder = restoring.lxcpath / "web"
    folder.mkdir()
    (folder / "config").write_text("lxc.uts.name = web\n")
    restoring.note("rounds", rounds=[])
    restoring.move(Event.RESTORED)
    return restoring


def lxc_says(patch: pytest.MonkeyPatch, state: str) -> None:
    patch.setattr(lxc, "Container", lambda *_, **__: SimpleNamespace(state=state, rootfs="/nowhere", name="web"))
