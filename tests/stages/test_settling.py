# SPDX-License-Identifier: GPL-2.0-or-later
"""What becomes of a container whose restore was never recorded: nothing that may have run is taken away."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from migrator import aftermath, container_config, identity, let_run, lxc
from migrator.errors import JournalBroken
from migrator.identity import Whose
from migrator.journal import Journal, Migration
from migrator.layout import Layout
from migrator.states import Event, Role, State
from stages import settling

ID = "0badc0de"


@pytest.fixture
def restoring(tmp_path: Path) -> Iterator[Migration]:
    """A restore was under way when its program ended."""
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

    monkeypatch.setattr(identity, "whose", lambda *_: Whose.OURS)
    monkeypatch.setattr(settling, "_has_come_up", lambda *_: False)
    monkeypatch.setattr(Layout, "is_own_rootfs", lambda *_: "deleted" not in done)
    monkeypatch.setattr(settling, "end", act("ended", True))
    monkeypatch.setattr(settling, "give_back_rootfs", act("deleted"))
    monkeypatch.setattr(container_config, "unfence", act("unfenced"))
    monkeypatch.setattr(aftermath, "start", act("started"))
    monkeypatch.setattr(lxc, "Container", lambda *_: None)
    return done


def mark(migration: Migration, boot: str = "") -> Path:
    path = let_run.mark(Layout(migration.lxcpath, migration.name, migration.id).spool)
    let_run.record(str(path))
    if boot:
        path.write_text(boot)
    return path


@pytest.mark.parametrize(("boot", "start", "expected"), [
    ("an earlier one", True, ["ended", "unfenced", "started"]),
    ("an earlier one", False, ["ended"]),  # who asks the source first does the rest
    ("", True, ["ended", "unfenced"]),  # it has ended by itself in this very boot
])
def test_what_has_run_keeps_its_disk(restoring: Migration, acts: list[str], boot: str, start: bool,
                                     expected: list[str]) -> None:
    mark(restoring, boot)
    settling.settle(restoring, start=start)
    assert restoring.state is State.RESTORED
    assert acts == expected


def test_what_never_ran_is_removed(restoring: Migration, acts: list[str]) -> None:
    settling.settle(restoring)
    assert restoring.state is State.OWNED
    assert acts == ["ended", "deleted"]


def test_who_is_killed_while_it_is_removed_does_not_take_it_for_one_that_has_run(
    restoring: Migration, acts: list[str],
) -> None:
    path = mark(restoring)
    settling.clear(restoring)
    assert not let_run.was(path)
    settling.settle(restoring)
    assert restoring.state is State.OWNED


def test_a_full_disk_at_the_record_takes_nothing_away(restoring: Migration, acts: list[str],
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    mark(restoring, "an earlier one")

    def full(*_: object, **__: object) -> None:
        raise JournalBroken(path=restoring.journal_path, reason="database or disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(Migration, "move", full)
        with pytest.raises(JournalBroken):
            settling.settle(restoring)
    assert restoring.state is State.RESTORING and "deleted" not in acts
    restoring.refresh()
    settling.settle(restoring)
    assert str(restoring.state) == "restored" and "deleted" not in acts
