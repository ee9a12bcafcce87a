# SPDX-License-Identifier: GPL-2.0-or-later
"""It has run here and is stopped, as after a reboot: nobody is told to start it before the source was asked."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from migrator.base.result import Result
from migrator.config import container_config
from migrator.copies import after_crash, origins
from migrator.copies.origins import Whose
from migrator.errors.connection import ConnectionLost
from migrator.errors.containers import AlreadyRuns, ContainerNotFound, OutOfOrder
from migrator.errors.ownership import ForceRefused, SourceNeeded, TwoCopies
from migrator.host import lxc
from migrator.record.journal import Migration
from migrator.record.states import Event, State
from stages import restore_dump, resume
from stages.steps import (
    abandon,
    arguments,
    ask_source,
    finish_here,
    force,
    left_running,
    prologue,
    renamed,
    resume_destination,
    settling,
    stopped_here,
)
from stages.steps.ask_source import Asking
from stages.steps.options import NamedContainer
from tests import btrfs_roots
from tests.stages.other_starts import PIDS, SLEEP, START, lives
from tests.stages.restored_and_stopped import here, lxc_says  # noqa: F401 -- a fixture
from tests.stages.restoring import ID, acts, restoring

__all__ = ["acts", "restoring"]
ASKING = Asking()
RESUME = "migrator resume web"
LOST = ConnectionLost(destination="hosta", reason="cut")


def the_source(patch: pytest.MonkeyPatch, says: State | ConnectionLost | None) -> None:
    def ask(*_: object) -> State | None:
        if isinstance(says, ConnectionLost):
            raise says
        return says

    patch.setattr(ask_source, "ask", ask)


def typed(migration: Migration, patch: pytest.MonkeyPatch, **given: Any) -> str:
    """restore-dump."""
    patch.setattr(arguments, "require_root", lambda _: None)
    patch.setattr(prologue, "Journal", lambda _: contextlib.nullcontext(migration.journal))
    patch.setattr(prologue, "locked", lambda *_, **__: contextlib.nullcontext())
    patch.setattr(prologue, "arrived", lambda *_: migration)
    container = NamedContainer("web", str(migration.lxcpath))
    return restore_dump.run(restore_dump.RestoreDumpOptions(container, **given)).text


def test_status_has_the_source_asked_first(here: Migration) -> None:
    note = after_crash.note(here)
    assert RESUME in note and "lxc-start" not in note and "hosta may have been forced" in note


@pytest.mark.parametrize("says", [LOST, None, State.PREPARED, State.DUMPING])
def test_resume_says_nothing_of_a_start_before_it_has_answered(here: Migration, monkeypatch: pytest.MonkeyPatch,
                                                               says: State | ConnectionLost | None) -> None:
    """And what to do where it is lost for good."""
    the_source(monkeypatch, says)
    with pytest.raises(SourceNeeded) as error:
        resume_destination.go_on(ASKING, here)
    assert "lxc-start" not in f"{error.value} {error.value.hint}"
    assert "migrator restore-dump web --force" in error.value.hint
    assert here.state is State.RESTORED


@pytest.mark.parametrize("says", [State.OFFERED, State.DUMPED, State.FINISHING])
def test_a_source_that_waits_goes_on(here: Migration, monkeypatch: pytest.MonkeyPatch, says: State) -> None:
    the_source(monkeypatch, says)
    done = resume_destination.go_on(ASKING, here)
    assert done.text == "web has run here, and is now stopped." and not resume._is_all(here, at_boot=True)


@pytest.mark.parametrize("state", ["STOPPED", "RUNNING"])
@pytest.mark.parametrize("finished", [True, False])
def test_its_start_is_advised_once_the_source_has_finished(here: Migration, monkeypatch: pytest.MonkeyPatch,
                                                           state: str, finished: bool) -> None:
    lxc_says(monkeypatch, state)
    the_source(monkeypatch, State.DUMPED)
    monkeypatch.setattr(resume, "Journal", lambda _: contextlib.nullcontext(here.journal))
    monkeypatch.setattr(prologue, "locked_for", lambda *_: contextlib.nullcontext())

    def act(_: object, migration: Migration, done: Result) -> Result:
        if finished:  # by the source's request
            again = here.journal.by_id(migration.id, migration.role)
            assert again
            again.move(Event.FINISHED)
        return Result(done.data, f"{done.text} hosta has done the rest.")

    monkeypatch.setattr(ask_source, "act", act)
    text = resume.one(resume.ResumeOptions(NamedContainer("web")), "web", here.lxcpath).text
    assert ("Start it with: lxc-start" in text) is (finished and state == "STOPPED")


@pytest.mark.parametrize("state", ["STOPPED", "RUNNING"])
def test_what_runs_is_not_in_need_of_its_source(here: Migration, monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    lxc_says(monkeypatch, state)
    the_source(monkeypatch, LOST)
    with pytest.raises(SourceNeeded) if state == "STOPPED" else contextlib.nullcontext():
        resume_destination.go_on(ASKING, here)


def test_what_lxc_does_not_know_cannot_be_started(here: Migration, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, lxcpath: object) -> None:
        raise ContainerNotFound(name=name, lxcpath=lxcpath)

    monkeypatch.setattr(lxc, "Container", missing)
    assert not stopped_here.is_stopped(here)


@pytest.mark.parametrize("state", ["STOPPED", "RUNNING"])
def test_a_rollback_that_is_typed_there_asks_first(here: Migration, monkeypatch: pytest.MonkeyPatch,
                                                   state: str) -> None:
    lxc_says(monkeypatch, state)
    with pytest.raises(AlreadyRuns) as error:
        abandon.give_up_here(here)
    assert (RESUME in error.value.hint) is (state == "STOPPED")


@pytest.mark.parametrize("state", ["STOPPED", "RUNNING"])
def test_restore_dump_does_not_call_it_running(here: Migration, monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    lxc_says(monkeypatch, state)
    if state == "RUNNING":
        assert "already runs here" in typed(here, monkeypatch)
        return
    with pytest.raises(OutOfOrder, match="has since been stopped") as error:
        typed(here, monkeypatch)
    assert RESUME in error.value.hint


@pytest.mark.parametrize("says", [LOST, State.ROLLED_BACK])
def test_by_force_it_goes_on(here: Migration, acts: list[str], monkeypatch: pytest.MonkeyPatch,
                             says: State | ConnectionLost) -> None:
    """Where its source is lost for good; one that answers is believed."""
    the_source(monkeypatch, says)
    monkeypatch.setattr(force, "is_silence", lambda _: True)
    with pytest.raises(ForceRefused, match="may have been forced"):
        typed(here, monkeypatch, force="")
    if says is LOST:
        assert "runs here" in typed(here, monkeypatch, force=ID)
    else:
        with pytest.raises(AlreadyRuns) as error:
            typed(here, monkeypatch, force=ID)
        assert RESUME in error.value.hint
    assert acts == (["started", "unfenced"] if says is LOST else [])


@pytest.mark.parametrize("given", ["", ID])
def test_it_is_not_finished_alone(here: Migration, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    with pytest.raises(OutOfOrder, match="was stopped here, and hosta may run it again") as error:
        force.finish_alone(here, given, lambda: pytest.fail("the source is asked"))
    assert RESUME in error.value.hint and here.state is State.RESTORED


def test_what_finishing_alone_risks(here: Migration, monkeypatch: pytest.MonkeyPatch) -> None:
    lxc_says(monkeypatch, "RUNNING")
    monkeypatch.setattr(finish_here, "end_here", lambda *_, **__: None)
    with pytest.raises(ForceRefused, match="may have been forced to run web again"):
        force.finish_alone(here, "", lambda: None)
    with pytest.raises(TwoCopies):
        force.finish_alone(here, ID, lambda: State.ROLLED_BACK)
    assert "two copies run" in force.finish_alone(here, ID, lambda: None).text


def test_one_that_has_ended_is_let_alone(here: Migration, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a `finish`: any later reboot is an ordinary one."""
    the_source(monkeypatch, LOST)
    here.move(Event.FINISHED)
    assert not stopped_here.is_stopped(here) and not after_crash.note(here)
    assert "has ended" in resume_destination.go_on(ASKING, here).text


# --- what runs beside it --------------------------------------------------------------------------------------

BESIDE = ["a copy, or another container with its address", "who looks into it"]


@pytest.fixture(params=BESIDE)
def beside(request: pytest.FixtureRequest, here: Migration, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The root file system is this host's, for what lives in there."""
    monkeypatch.setattr(lxc, "Container", lambda *_, **__: SimpleNamespace(state="STOPPED", rootfs=Path("/")))
    if request.param == BESIDE[0]:
        monkeypatch.setattr(renamed, "living", lambda *_: [4711])
        yield request.param
    else:
        with looked_into(monkeypatch, *PIDS, *SLEEP):  # as arch-chroot has one do it
            yield request.param


@contextlib.contextmanager
def looked_into(patch: pytest.MonkeyPatch, *command: str) -> Iterator[int]:
    with lives(*command) as found:
        patch.setattr(lxc, "container_processes", lambda _: found[1:])
        patch.setattr(lxc, "runs_in", lambda *_: True)
        btrfs_roots.are(patch, lambda _: True)
        patch.setattr(left_running, "is_in_own", lambda *_: True)
        yield found[1]


@pytest.mark.parametrize("fenced", [True, False])
def test_nothing_beside_it_makes_it_run(here: Migration, acts: list[str], beside: str, fenced: bool,
                                        monkeypatch: pytest.MonkeyPatch) -> None:
    if fenced:
        monkeypatch.setattr(origins, "whose", lambda _: Whose.OURS)
        assert settling.stands_fenced(here)
    assert stopped_here.is_stopped(here)
    with pytest.raises(OutOfOrder, match="was stopped here, and hosta may run it again"):
        force.finish_alone(here, ID, lambda: pytest.fail("the source is asked"))
    with pytest.raises(OutOfOrder, match="has since been stopped"):
        typed(here, monkeypatch)
    with pytest.raises(AlreadyRuns) as error:
        abandon.give_up_here(here)
    assert RESUME in error.value.hint
    note = after_crash.note(here)
    assert RESUME in note and "live on" not in note
    the_source(monkeypatch, LOST)
    monkeypatch.setattr(ask_source, "_asked", lambda *_, **__: ask_source.ask(ASKING, here))
    with pytest.raises(SourceNeeded):
        resume_destination.go_on(ASKING, here)
    monkeypatch.setattr(force, "is_silence", lambda _: True)
    assert "runs here" in typed(here, monkeypatch, force=ID) and acts == ["started", "unfenced"]


def test_it_is_fenced_whatever_runs_beside_it(here: Migration, beside: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And does not give way while a copy of it runs, which is named: there is nothing to stop by its own name."""
    the_source(monkeypatch, State.ROLLED_BACK)
    monkeypatch.setattr(finish_here, "drop_way_back", lambda _: None)
    if beside == BESIDE[0]:
        for _ in range(2):
            with pytest.raises(TwoCopies) as error:
                resume_destination.go_on(ASKING, here)
            assert "run there: kill -9 4711, once you have seen" in error.value.hint and RESUME in error.value.hint
            assert here.state is State.RESTORED and fence(here) == ID
        monkeypatch.setattr(renamed, "living", lambda *_: [])
    resume_destination.go_on(ASKING, here)
    assert str(here.state) == "finished" and here.arrived.given_way and fence(here) == ID


def fence(migration: Migration) -> str:
    return container_config.fence_of((migration.lxcpath / "web" / "config").read_text())


def test_a_start_that_lxc_has_lost_still_runs(here: Migration, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its monitor was killed. The fence keeps LXC from starting another beside it."""
    monkeypatch.setattr(lxc, "Container", lambda *_, **__: SimpleNamespace(state="STOPPED", rootfs=Path("/"),
                                                                          init_pid=-1))
    the_source(monkeypatch, State.ROLLED_BACK)
    with looked_into(monkeypatch, *START, *SLEEP) as pid:
        assert settling.is_at_work(here) and not stopped_here.is_stopped(here)
        with pytest.raises(TwoCopies) as error:
            resume_destination.go_on(ASKING, here)
        assert f"kill -9 {pid}" in error.value.hint and fence(here) == ID and here.state is State.RESTORED


# --- the source has finished, and the journal here is an older one --------------------------------------------


@pytest.mark.parametrize("state", ["STOPPED", "RUNNING"])
def test_what_the_source_has_finished_ends_here_too(here: Migration, monkeypatch: pytest.MonkeyPatch,
                                                    state: str) -> None:
    lxc_says(monkeypatch, state)
    the_source(monkeypatch, State.FINISHED)
    monkeypatch.setattr(resume, "Journal", lambda _: contextlib.nullcontext(here.journal))
    monkeypatch.setattr(prologue, "locked_for", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(ask_source, "_run_on_source", lambda *_: pytest.fail("it is told to go on"))
    monkeypatch.setattr(origins, "rootfs_uuid", lambda _: "")
    monkeypatch.setattr(finish_here, "drop_way_back", lambda _: None)
    text = resume.one(resume.ResumeOptions(NamedContainer("web")), "web", here.lxcpath).text
    again = here.journal.by_id(here.id, here.role)
    assert again and again.state is State.FINISHED and not again.arrived.given_way
    assert ("Start it with: lxc-start" in text) is (state == "STOPPED")
