# SPDX-License-Identifier: GPL-2.0-or-later
"""A container's configuration arrives, and is defined."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from migrator.config import lxc_settings
from migrator.copies import origins
from migrator.record.journal import Journal, Migration
from migrator.record.states import Event, Role
from migrator.remote.answering import keep_config
from stages.steps import import_round
from tests.migrator.layouts import layout_of
from tests.stages.asks import begins

ID = "0badc0de"


@pytest.fixture
def arriving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Migration]:
    """A migration to this host of a container that lies at /far/web on its own."""
    monkeypatch.setattr(origins, "_lives", lambda _: False)  # LXC is not asked: no copy here is at work
    (tmp_path / "pool").mkdir()
    with Journal(tmp_path / "journal.db") as journal:
        yield journal.create(id=ID, role=Role.DESTINATION, name="web", lxcpath=tmp_path / "pool", peer="hosta",
                             event=Event.RECEIVE, other_name="web", source_lxcpath=str(tmp_path / "far"), mapped_root=0)


def define(migration: Migration, text: str, includes: dict[str, str]) -> lxc_settings.Config:
    """The container's configuration after this text and these files have come; it must be one that LXC accepts."""
    layout = layout_of(migration)
    layout.make_folder()
    layout.spool.mkdir(exist_ok=True)
    keep_config(layout, begins(config=text, includes=includes))
    import_round.define(migration, layout)
    found = lxc_settings.read(layout.container / "config")
    assert not found.faults
    return found
