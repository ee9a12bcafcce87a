# SPDX-License-Identifier: GPL-2.0-or-later
"""A destination with snapshots that were kept as bases. Folders stand for subvolumes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrator.host import btrfs
from migrator.record.journal import Journal, Migration
from migrator.record.migration_paths import Layout
from migrator.record.states import Event, Role

ID, FIRST, SECOND = "0badc0de", "00000001", "00000002"
ROOT, P, KEY = "ssh", "peer:0123", "ssh:hosta"


class Host:
    def __init__(self, journal: Journal, pool: Path) -> None:
        self.journal, self.pool = journal, pool
        self.generation = 0

    def snapshot(self, id_: str, number: int = 1, of: str = "") -> None:
        """With its own name as uuid, a snapshot `of` another one's."""
        layout = Layout(self.pool, "web", id_)
        layout.make_folder()
        self.generation += 1
        layout.snapshot(number).mkdir()
        (layout.snapshot(number) / "generation").write_text(f"{self.generation} {of}")

    def given_up(self, id_: str, caller: str, of: str = "", **detail: object) -> Migration:
        """One that keeps a base."""
        made = self.came(id_, caller, of, kept=[f"{id_}.1"], **detail)
        made.move(Event.ABANDON)
        made.move(Event.ABANDONED)
        return made

    def came(self, id_: str, caller: str, of: str = "", **detail: object) -> Migration:
        self.snapshot(id_, of=of)
        return self.journal.create(id=id_, role=Role.DESTINATION, name="web", lxcpath=self.pool, peer="hosta",
                                   event=Event.RECEIVE, rounds=[], caller=caller, **detail)

    def left(self) -> list[str]:
        return [path.name for path in Layout(self.pool, "web", ID).snapshots()]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setattr(btrfs, "is_subvolume", lambda path: (path / "generation").is_file())

    def info(path: Path) -> btrfs.Subvolume:
        generation, of = (path / "generation").read_text().split(" ", 1)
        return btrfs.Subvolume(path, path.name, "", True, int(generation), of)

    monkeypatch.setattr(btrfs, "info", info)
    monkeypatch.setattr(btrfs, "delete", lambda path: shutil.rmtree(path) if path.is_dir() else None)
    with Journal(tmp_path / "journal.db") as journal:
        yield Host(journal, tmp_path / "pool")
