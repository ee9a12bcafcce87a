# SPDX-License-Identifier: GPL-2.0-or-later
"""A container that is being restored by a program that has ended, and what is done to it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from migrator.config import container_config
from migrator.copies import no_memory, origins
from migrator.copies.origins import Whose
from migrator.criu import ran_mark
from migrator.host import lxc
from migrator.record import lxc_disk
from migrator.record.journal import Journal, Migration
from migrator.record.migration_paths import Layout
from migrator.record.states import Event, Role
from stages.steps import settling
from tests import btrfs_roots
from tests.migrator.layouts import layout_of

ID = "0badc0de"


@pytest.fixture
def restoring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Migration]:
    """A restore was under way when its program ended. Any process may live in a subvolume."""
    btrfs_roots.are(monkeypatch, lambda _: True)
    with Journal(tmp_path / "journal.db") as journal:
        migration = journal.create(id=ID, role=Role.DESTINATION, name="web", lxcpath=tmp_path, peer="hosta",
                                   event=Event.RECEIVE)
        for event in (Event.RECEIVED, Event.IMPORT, Event.IMPORTED, Event.RECEIVE_DUMP, Event.DUMP_RECEIVED, Event.OWN,
                      Event.RESTORE):
            migration.move(event)
        Layout(tmp_path, "web", ID).spool.mkdir(parents=True)
        yield migration


@pytest.fixture
def acts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done to the container, which is not up; its root file system is there until it is given back."""
    done: list[str] = []

    def act(word: str, answer: object = None) -> Any:
        def note(*_: object, **__: object) -> object:
            done.append(word)
            return answer
        return note

    monkeypatch.setattr(origins, "whose", lambda *_: Whose.OURS)
    monkeypatch.setattr(lxc_disk, "is_removed", lambda *_: False)
    monkeypatch.setattr(settling, "_has_come_up", lambda *_: False)
    monkeypatch.setattr(Layout, "is_own_rootfs", lambda *_: "deleted" not in done)
    monkeypatch.setattr(settling, "end", act("ended", True))
    monkeypatch.setattr(settling, "give_back_rootfs", act("deleted"))
    monkeypatch.setattr(container_config, "unfence", act("unfenced"))
    monkeypatch.setattr(no_memory, "start", act("started"))
    monkeypatch.setattr(no_memory, "unfenced", lambda *_: contextlib.nullcontext(Path("/run/config")))
    monkeypatch.setattr(no_memory, "log_of", lambda *_, **__: Path("/dev/null"))
    monkeypatch.setattr(lxc, "Container", lambda *_: object())
    return done


def mark(migration: Migration, boot: str = "") -> Path:
    path = ran_mark.mark(layout_of(migration).spool)
    ran_mark.record(str(path))
    if boot:
        path.write_text(boot)
    return path
