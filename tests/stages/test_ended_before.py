# SPDX-License-Identifier: GPL-2.0-or-later
"""What has ended on the destination, and by its journal there, an older one, has not: its spool went with that."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from migrator.config import container_config
from migrator.copies import after_crash
from migrator.errors.containers import DiskAway, OutOfOrder
from migrator.host import btrfs, lxc
from migrator.record import lxc_disk
from migrator.record.journal import Journal, Migration
from migrator.record.states import Event, Role, State
from migrator.transfer.messages import Finish
from stages.steps import ask_source, finish_here, force, resume_destination
from stages.steps.ask_source import Asking
from tests.stages.away_disk import ID, OWN, There, host, make

__all__ = ["host", "make"]

BOOT = Asking()


@pytest.fixture
def older(make: Callable[..., There], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Migration]:
    """By the journal that was put back it has only been restored: on the disk is what its end has left."""
    there = make(Event.RESTORE)
    monkeypatch.setattr(btrfs, "delete", lambda path, **_: shutil.rmtree(path, ignore_errors=True))
    monkeypatch.setattr(lxc, "Container", lambda *_, **__: SimpleNamespace(
        state="RUNNING", rootfs=there.layout.rootfs, name="web"))
    there.migration.move(Event.RESTORED)
    container_config.unfence(there.layout.container, ID)
    finish_here.finish(there.service, Finish(id=ID))
    assert not there.layout.spool.exists() and there.layout.is_own_rootfs()
    with Journal(tmp_path / "older.db") as journal:
        found = journal.create(id=ID, role=Role.DESTINATION, name="web", lxcpath=there.pool, peer="hosta",
                               event=Event.RECEIVE, rounds=[], disk=lxc_disk.of(there.pool))
        for event in (*OWN, Event.RESTORE, Event.RESTORED):
            found.move(event)
        yield found


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[State | None]:
    """What the source answers, which has finished unless a test has it otherwise."""
    answers: list[State | None] = [State.FINISHED]
    monkeypatch.setattr(ask_source, "state_of_source", lambda *_: answers[-1])
    return answers


@pytest.mark.parametrize("since", ["nothing", "stopped", "destroyed", "its snapshots were removed", "moved on"])
def test_what_the_source_has_finished_ends_here_too(older: Migration, asked: list[State | None], since: str,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever has become of it. And it is not said that its disk were away."""
    folder = older.lxcpath / "web"
    if since == "stopped":
        monkeypatch.setattr(lxc, "Container", lambda *_, **__: SimpleNamespace(
            state="STOPPED", rootfs=folder / "rootfs", name="web"))
    elif since == "destroyed":
        shutil.rmtree(folder)
    elif since == "its snapshots were removed":
        shutil.rmtree(older.lxcpath / ".migrator")
    elif since == "moved on":
        container_config.fence(folder, "lxc.uts.name = web\n", "feedface", "it has moved on")
    assert "This asks hosta: migrator resume web" in after_crash.note(older)
    before = (folder / "config").read_text() if folder.is_dir() else None
    done = resume_destination.go_on(BOOT, older)
    assert older.state is State.FINISHED and not older.arrived.given_way and "hosta has finished" in done.text
    assert ("Start it with: lxc-start" in done.text) is (since == "stopped")
    assert (folder / "config").read_text() == before if folder.is_dir() else before is None


def test_it_ends_as_the_source_asks_for_it(older: Migration) -> None:
    """Once more, as the answer to the first time was lost."""
    service = SimpleNamespace(migration=lambda _: older)
    finish_here.finish(service, Finish(id=ID))  # type: ignore[arg-type]
    assert older.state is State.FINISHED


@pytest.mark.parametrize("says", [State.DUMPED, None])
def test_nothing_is_concluded_without_the_source(older: Migration, asked: list[State | None],
                                                 says: State | None) -> None:
    asked.append(says)
    shutil.rmtree(older.lxcpath / "web")
    with pytest.raises(DiskAway):
        resume_destination.go_on(BOOT, older)
    assert older.state is State.RESTORED


@pytest.mark.parametrize("known", [True, False])
def test_nor_on_another_disk(older: Migration, asked: list[State | None], monkeypatch: pytest.MonkeyPatch,
                             known: bool) -> None:
    """Nor where an older version has not recorded which one it was."""
    if known:
        monkeypatch.setattr(lxc_disk, "of", lambda _: "another")
    else:
        older.note("disk", disk=None)
    with pytest.raises(DiskAway):
        resume_destination.go_on(BOOT, older)
    assert "is not visible" in after_crash.note(older)


def test_who_would_force_its_end_is_told_to_resume(older: Migration) -> None:
    with pytest.raises(OutOfOrder) as error:
        force.finish_alone(older, ID, lambda: State.FINISHED)
    assert error.value.hint == "Next: migrator resume web"
