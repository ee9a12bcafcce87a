# SPDX-License-Identifier: GPL-2.0-or-later
"""A journal of the test's, and a migration in it: being dumped, offered, or owned here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from migrator.config import container_config
from migrator.record import image_folders, migration_paths
from migrator.record.journal import Journal, Migration
from migrator.record.states import Event, Role


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Journal]:
    monkeypatch.setattr(image_folders, "RUNTIME", tmp_path / "run")
    with Journal(tmp_path / "journal.db") as opened:
        yield opened


def offered(journal: Journal) -> Migration:
    migration = dumping(journal)
    migration.move(Event.OFFER)
    return migration


def dumping(journal: Journal) -> Migration:
    migration = journal.create(id="0badc0de", role=Role.SOURCE, name="web", lxcpath=journal.path.parent,
                               peer="root@hostb", event=Event.SEND, destination_host="hostb", rounds=[],
                               destination_lxcpath="/pool", pid=1, cgroup="/nowhere", ports=[])
    for event in (Event.SENT, Event.FREEZE):
        migration.move(event)
    return migration


def owned(journal: Journal, **detail: object) -> Migration:
    migration = journal.create(id="0badc0de", role=Role.DESTINATION, name="web", lxcpath=journal.path.parent,
                               peer="hosta", event=Event.RECEIVE, rounds=[], destination="root@hostb", **detail)
    for event in (Event.RECEIVED, Event.IMPORT, Event.IMPORTED, Event.RECEIVE_DUMP, Event.DUMP_RECEIVED, Event.OWN):
        migration.move(event)
    folder = migration.lxcpath / "web"
    folder.mkdir()
    container_config.fence(folder, "lxc.uts.name = web\n", migration.id, "it is being moved here")
    migration_paths.Layout.of(migration).spool.mkdir(parents=True)
    return migration
