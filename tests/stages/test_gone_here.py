# SPDX-License-Identifier: GPL-2.0-or-later
"""A source whose container was removed while it stood still, or has given its name to another one."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import shutil
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from migrator.base.result import Result
from migrator.copies import no_memory, remains
from migrator.errors.containers import ContainerNotFound
from migrator.errors.memory import StartFailed
from migrator.errors.outcomes import SourceStillStopped
from migrator.errors.this_host import JournalBroken
from migrator.host import lxc
from migrator.record.journal import Journal, Migration
from migrator.record.states import Event, Role, State
from stages import resume
from stages.steps import give_back, resume_source, thaw_again
from tests.migrator.layouts import layout_of
from tests.stages.gone import ANOTHER, DUMPED, ID, ITS_OWN, WAYS, Stopped, begun, host, put, started  # noqa: F401 -- fixtures
from tests.stages.journals import journal  # noqa: F401 -- a fixture
from tests.stages.snapshots import fence, thaws, typed  # noqa: F401 -- fixtures

HONEST = lxc.Container


@WAYS
def test_another_one_is_not_started(journal: Journal, started: list[str], way: dict[str, Any],
                                    capsys: pytest.CaptureFixture[str]) -> None:
    migration = begun(journal, *DUMPED, **way)
    config = put(migration, ANOTHER)
    before = config.read_text()
    done = give_back.roll_back(migration, lambda: "")
    assert started == [] and done.data["thawed"] is False and migration.state is State.ROLLED_BACK
    assert config.read_text() == before and (config.parent / "rootfs" / "uuid").is_file()
    said = capsys.readouterr().err
    assert "another container has taken its place, and is left alone" in said
    assert f"{layout_of(migration).snapshot(2)} is kept, as it may be the last copy of web" in said
    assert [path.name for path in layout_of(migration).own_snapshots()] == [f"{ID}.2"]


@WAYS
def test_it_is_known_by_its_root_file_system_where_its_fence_was_taken_away(journal: Journal, started: list[str],
                                                                            way: dict[str, Any]) -> None:
    migration = begun(journal, *DUMPED, **way)
    put(migration, ITS_OWN)
    give_back.roll_back(migration, lambda: "")
    assert started == [""] and layout_of(migration).own_snapshots() == []


@WAYS
def test_by_its_fence_where_its_snapshots_were_removed(journal: Journal, started: list[str],
                                                       way: dict[str, Any]) -> None:
    migration = begun(journal, *DUMPED, **way)
    shutil.rmtree(layout_of(migration).folder)
    fenced = fence(migration)
    give_back.roll_back(migration, lambda: "")
    assert len(started) == 1 and fenced() == ""


@WAYS
@pytest.mark.parametrize(("recorded", "found", "starts"), [
    (ITS_OWN, ITS_OWN, True), (ITS_OWN, ANOTHER, False),
], ids=["own", "another's"])
def test_by_what_was_recorded_where_neither_is_left(journal: Journal, started: list[str], way: dict[str, Any],
                                                    recorded: str, found: str, starts: bool) -> None:
    """An earlier rollback may have taken the fence and the snapshots away before a start that has failed."""
    migration = begun(journal, *DUMPED, **way, rootfs_uuid=recorded)
    shutil.rmtree(layout_of(migration).folder)
    put(migration, found)
    give_back.roll_back(migration, lambda: "")
    assert started == [""] * starts


@WAYS
@pytest.mark.parametrize("found", [ITS_OWN, ANOTHER])
def test_by_its_name_alone_none_is_started(journal: Journal, started: list[str], way: dict[str, Any], found: str,
                                           monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An older version has recorded nothing else; once it runs, whoever has started it, nothing is left to be done."""
    migration = begun(journal, *DUMPED, **way)
    shutil.rmtree(layout_of(migration).folder)
    put(migration, found)
    with pytest.raises((StartFailed, SourceStillStopped), match="nothing shows") as refused:
        give_back.roll_back(migration, lambda: "")
    assert f"lxc-start -P {migration.lxcpath} -n web" in str(refused.value)
    assert started == [] and str(migration.state) == "rolling-back"
    monkeypatch.setattr(Stopped, "state", "RUNNING")
    assert give_back.roll_back(migration, lambda: "").data["thawed"] is False
    assert started == [] and str(migration.state) == "rolled-back"
    assert "and it is not stopped" in capsys.readouterr().err


@WAYS
@pytest.mark.parametrize("full", [False, True])
def test_what_its_snapshots_have_told_is_remembered(journal: Journal, started: list[str], way: dict[str, Any],
                                                    full: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """They go first, where room may be short for its start. Of an older version, which had fenced nothing yet."""
    migration = begun(journal, *DUMPED[:2], **way)
    put(migration, ITS_OWN)
    starts = no_memory.start

    def start(*given: Any, **more: Any) -> int:
        if layout_of(migration).own_snapshots():
            raise StartFailed(name="web", reason="No space left on device", log="x")
        return starts(*given, **more)

    monkeypatch.setattr(no_memory, "start", start)
    if full:
        def note(*_: object, **__: object) -> None:
            raise JournalBroken(path=journal.path, reason="database or disk is full")
        monkeypatch.setattr(Migration, "note", note)
    give_back.roll_back(migration, lambda: "")
    assert started == [""]
    again = journal.by_id(ID, Role.SOURCE)
    assert again and again.copy.rootfs_uuid == ITS_OWN


@WAYS
def test_a_start_that_has_failed_is_tried_again(journal: Journal, started: list[str], way: dict[str, Any],
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    migration = begun(journal, *DUMPED, **way, rootfs_uuid=ITS_OWN)
    put(migration, ITS_OWN)

    def fails(*_: object, **__: object) -> int:
        raise StartFailed(name="web", reason="no room", log="web-start.log")

    with monkeypatch.context() as first, pytest.raises((StartFailed, SourceStillStopped)):
        first.setattr(no_memory, "start", fails)
        give_back.roll_back(migration, lambda: "")
    assert layout_of(migration).own_snapshots() == []
    give_back.roll_back(migration, lambda: "")
    assert started == [""]


def test_its_root_file_system_is_recorded_when_it_is_brought_to_a_stand(journal: Journal) -> None:
    put(begun(journal), ITS_OWN)
    assert remains.record(lxc.Container("web", journal.path.parent)).rootfs_uuid == ITS_OWN


@WAYS
def test_a_root_file_system_that_is_not_mounted_is_no_other_one(journal: Journal, started: list[str],
                                                                way: dict[str, Any]) -> None:
    """The start fails then, and is tried again."""
    migration = begun(journal, *DUMPED, **way)
    put(migration)
    thaw_again.thaw_source(migration)
    assert len(started) == 1


@WAYS
def test_what_was_removed_needs_no_start(journal: Journal, started: list[str], way: dict[str, Any],
                                         capsys: pytest.CaptureFixture[str]) -> None:
    migration = begun(journal, *DUMPED, **way)
    done = give_back.roll_back(migration, lambda: "")
    assert started == [] and done.data["kept"] == [] and migration.state is State.ROLLED_BACK
    assert "it was removed, or renamed" in capsys.readouterr().err
    assert [path.name for path in layout_of(migration).own_snapshots()] == [f"{ID}.2"]


@WAYS
def test_nor_is_it_lost_where_nobody_need_be_asked_first(journal: Journal, started: list[str],
                                                         way: dict[str, Any]) -> None:
    migration = begun(journal, *DUMPED[:2], **way, rounds=[{}])
    give_back.roll_back(migration, lambda: "snapshot 1")
    assert started == [] and str(migration.state) == "rolled-back" and migration.copy.last_copy == [f"{ID}.2"]
    assert [path.name for path in layout_of(migration).own_snapshots()] == [f"{ID}.1", f"{ID}.2"]


@WAYS
def test_what_is_not_mounted_may_come(journal: Journal, started: list[str], way: dict[str, Any]) -> None:
    migration = begun(journal, *DUMPED, **way)
    shutil.rmtree(layout_of(migration).folder)
    for _ in range(2):
        with pytest.raises(ContainerNotFound):
            give_back.roll_back(migration, lambda: "")
        assert str(migration.state) == "rolling-back"
    fence(migration)
    give_back.roll_back(migration, lambda: "")
    assert len(started) == 1 and migration.ended


def test_the_last_copy_is_no_base_any_more(journal: Journal, started: list[str]) -> None:
    """A container that is made anew under that name has bases dropped, when it moves or where room is short."""
    migration = begun(journal, *DUMPED)
    done = give_back.roll_back(migration, lambda: "snapshot 2")
    assert done.data["kept"] == migration.copy.kept == []
    assert [path.name for path in layout_of(migration).own_snapshots()] == [f"{ID}.2"]
    assert migration.copy.last_copy == [f"{ID}.2"]


def test_what_was_never_stopped_may_have_been_removed(journal: Journal, started: list[str]) -> None:
    migration = begun(journal, Event.SENT, memory=False)
    give_back.roll_back(migration, lambda: "")
    assert started == [] and migration.state is State.ROLLED_BACK


def test_once_it_was_found_gone_no_later_rollback_starts_it(journal: Journal, started: list[str],
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    """It was put back in between, stopped: that is somebody's own doing."""
    migration = begun(journal, *DUMPED[:2], memory=False, stopping=True)
    assert thaw_again.thaw_source(migration) is False
    migration.move(Event.THAW)
    put(migration, ITS_OWN)
    give_back.roll_back(migration, lambda: "")
    assert started == []


def test_one_that_is_renamed_back_loses_its_fence(journal: Journal, started: list[str], thaws: list[str],
                                                  typed: Callable[..., Result]) -> None:
    migration = begun(journal, *DUMPED)
    give_back.roll_back(migration, lambda: "")
    fenced = fence(migration)
    assert typed(dry_run=True).data["already"] and fenced() == ID
    assert typed().data["already"] and fenced() == ""


@pytest.mark.parametrize("events", [DUMPED[:3], DUMPED, (*DUMPED, Event.FINISH)])
def test_what_was_handed_over_goes_on_without_it(journal: Journal, monkeypatch: pytest.MonkeyPatch,
                                                 events: tuple[Event, ...]) -> None:
    driven: list[tuple[str, str]] = []
    monkeypatch.setattr(lxc, "Container", HONEST)
    monkeypatch.setattr(lxc, "_lxc", lambda: SimpleNamespace(Container=lambda *_: None))
    monkeypatch.setattr(resume_source, "_can_go_on", lambda *_: True)
    monkeypatch.setattr(resume_source, "Drive", lambda move: SimpleNamespace(
        run=lambda: driven.append((move.container.state, move.migration.id))))
    migration = begun(journal, *events)
    resume_source.go_on(resume.ResumeOptions().request(migration), {}, journal, migration, at_boot=False)
    assert driven == [("STOPPED", ID)]


def test_before_that_it_must_be_there(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lxc, "Container", HONEST)
    migration = begun(journal, Event.SENT)
    with pytest.raises(ContainerNotFound):
        resume_source.go_on(resume.ResumeOptions().request(migration), {}, journal, migration, at_boot=False)


@pytest.mark.parametrize("events", [(), (Event.SENT,), (Event.SENT, Event.FREEZE)], ids=lambda events: str(len(events)))
def test_at_boot_that_is_told_and_not_tried_again(journal: Journal, monkeypatch: pytest.MonkeyPatch,
                                                  events: tuple[Event, ...]) -> None:
    """It may have been removed for good, or its disk come late: nothing is lost by waiting for somebody's word."""
    migration = begun(journal, *events)
    done = resume_source.go_on(resume.ResumeOptions().request(migration), {}, journal, migration, at_boot=True)
    assert done.status == 0 and not migration.ended
    assert f"LXC no longer knows of web in {migration.lxcpath}: " in done.text
    assert "continue with: migrator resume web" in done.text and "give it up: migrator rollback web" in done.text
    give_back.roll_back(migration, lambda: "")
    assert migration.state is State.ROLLED_BACK


def test_at_boot_what_is_there_waits(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    migration = begun(journal, Event.SENT)
    put(migration, ITS_OWN)
    done = resume_source.go_on(resume.ResumeOptions().request(migration), {}, journal, migration, at_boot=True)
    assert done.text == ("web is STOPPED on this host, which has the token. What has been sent is kept. Continue with: "
                         "migrator resume web")
