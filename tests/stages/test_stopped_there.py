# SPDX-License-Identifier: GPL-2.0-or-later
"""It was let run, and has stopped in this very boot, with who restored it: the source's frozen memory is not ended."""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from migrator.base import boot_clock
from migrator.config import container_config
from migrator.copies import after_crash, origins, second_start
from migrator.copies.origins import Whose
from migrator.criu import ran_mark
from migrator.errors import MigratorError
from migrator.errors.containers import BackThere, ContainerNotFound, GoneThere, OutOfOrder, StoppedThere
from migrator.errors.this_host import JournalBroken
from migrator.host import lxc
from migrator.record import lxc_disk
from migrator.record.journal import Migration
from migrator.record.migration_paths import Layout
from migrator.record.states import Event, State
from migrator.transfer import messages
from migrator.transfer.messages import Running
from stages import restore_dump
from stages.steps import (
    abandon,
    arguments,
    ask_source,
    drive_back,
    finish_here,
    force,
    give_back,
    prologue,
    restore_over,
    resume_destination,
    settling,
)
from stages.steps.ask_source import Asking
from stages.steps.options import NamedContainer
from tests.stages.asks import abandons
from tests.stages.restoring import ID, acts, mark, restoring

__all__ = ["acts", "restoring"]
OTHER_BOOT = "an earlier one"


@pytest.fixture(autouse=True)
def stopped(acts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """By LXC's word, and by what runs here."""
    monkeypatch.setattr(lxc, "Container", lambda *_: SimpleNamespace(state="STOPPED", rootfs="/nowhere"))
    monkeypatch.setattr(lxc, "runs_in", lambda *_: False)
    monkeypatch.setattr(lxc, "container_processes", lambda _: [])


def asked(migration: Migration) -> Any:
    return SimpleNamespace(migration=lambda _: migration, find=lambda _: migration, end_behind=lambda: None)


def left(migration: Migration, *, memory: bool = True, boot: str = "") -> Migration:
    """Killed right after the mark was made."""
    migration.note("memory", memory=memory, rounds=[])
    mark(migration, boot)
    folder = migration.lxcpath / "web"
    folder.mkdir()
    container_config.fence(folder, "lxc.uts.name = web\n", ID, "no")
    return migration


RESTORE = messages.Restore(id=ID, limit=60)
REQUESTS: dict[str, Callable[[Migration], object]] = {
    "restore": lambda of: restore_over.restore_for_source(asked(of), RESTORE, lambda: math.inf),
    "running": lambda of: finish_here.running(asked(of), Running(id=ID)),
    "rollback": lambda of: abandon.abandon(asked(of), abandons()),
    "rollback there": abandon.give_up_here,
    "resume there": lambda of: resume_destination.go_on(Asking(), of),
}


@pytest.mark.parametrize("request_", REQUESTS)
def test_nothing_says_that_it_runs(restoring: Migration, acts: list[str], monkeypatch: pytest.MonkeyPatch,
                                   request_: str) -> None:
    """Whoever asks first finds it, and has a human choose; who asks again too."""
    monkeypatch.setattr(ask_source, "leave_for", lambda *_, **__: math.inf)
    left(restoring)
    settling.settle(restoring)
    for _ in range(2):
        with pytest.raises(StoppedThere) as error:
            REQUESTS[request_](restoring)
        assert "migrator restore-dump web" in error.value.hint and f"--force {ID}" in error.value.hint
    assert restoring.state is State.RESTORED and acts == ["ended"]
    assert "migrator restore-dump web" in after_crash.note(restoring)


@pytest.mark.parametrize(("memory", "boot"), [(False, ""), (False, OTHER_BOOT), (True, OTHER_BOOT)])
def test_what_is_worth_no_less_goes_on(restoring: Migration, acts: list[str], memory: bool, boot: str) -> None:
    """Without its memory it has nothing more on the source than on this disk; a reboot has always been its end."""
    REQUESTS["restore"](left(restoring, memory=memory, boot=boot))
    assert acts == ["ended", "started", "unfenced"]


@pytest.mark.parametrize("taken_back", [False, True])
def test_who_chooses_its_disk(restoring: Migration, acts: list[str], monkeypatch: pytest.MonkeyPatch,
                              taken_back: bool) -> None:
    """The source is asked even where it has given its word a moment ago: the memory there is of use to it again."""
    left(restoring)
    given: list[object] = []

    def leave_for(_: object, of: Migration, limit: float, *, by_hand: bool = False) -> float:
        given.append((of, by_hand))
        return 0.0 if taken_back else boot_clock.now() + limit

    monkeypatch.setattr(ask_source, "leave_for", leave_for)
    monkeypatch.setattr(arguments, "require_root", lambda _: None)
    monkeypatch.setattr(prologue, "DEFAULT_PATH", restoring.journal_path)
    monkeypatch.setattr(prologue, "Journal", lambda _: contextlib.nullcontext(restoring.journal))
    monkeypatch.setattr(prologue, "locked", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(prologue, "arrived", lambda *_: restoring)
    options = restore_dump.RestoreDumpOptions(NamedContainer("web", str(restoring.lxcpath)))
    if taken_back:
        with pytest.raises(OutOfOrder, match="runs on hosta again") as error:
            restore_dump.run(options)
        assert "migrator resume web" in error.value.hint
    else:
        assert "runs here" in restore_dump.run(options).text
    assert acts == (["ended"] if taken_back else ["ended", "started", "unfenced"])
    assert given == [(restoring, False)]


def test_who_chooses_its_memory(restoring: Migration, acts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is destroyed there first, by hand; then it is given back as whatever was."""
    left(restoring)
    settling.settle(restoring)
    monkeypatch.undo()
    monkeypatch.setattr(lxc, "container_processes", lambda _: [])
    shutil.rmtree(restoring.lxcpath / "web", ignore_errors=True)
    with pytest.raises(GoneThere):
        REQUESTS["running"](restoring)
    abandon.abandon(asked(restoring), abandons(gone=True))
    assert restoring.arrived.given_way


@pytest.mark.parametrize("fenced", [True, False])
def test_it_is_not_finished_without_its_source_either(restoring: Migration, acts: list[str],
                                                      monkeypatch: pytest.MonkeyPatch, fenced: bool) -> None:
    """Also where somebody has taken its fence away: the source's memory may still be worth more."""
    left(restoring)
    settling.settle(restoring)
    if not fenced:
        monkeypatch.setattr(origins, "whose", lambda *_: Whose.FOREIGN)
    with pytest.raises(OutOfOrder, match="was stopped here") as error:
        force.finish_alone(restoring, ID, lambda: pytest.fail("the source is asked"))
    assert "migrator resume web" in error.value.hint and restoring.state is State.RESTORED


def test_one_whose_end_was_asked_for_is_left_to_its_administrator(restoring: Migration, acts: list[str],
                                                                  monkeypatch: pytest.MonkeyPatch,
                                                                  capfd: pytest.CaptureFixture[str]) -> None:
    """The source's copy is gone by then."""
    monkeypatch.setattr(finish_here, "drop_way_back", lambda _: None)
    monkeypatch.setattr(origins, "rootfs_uuid", lambda _: "")
    monkeypatch.setattr("migrator.host.btrfs.is_subvolume", lambda _: False)
    left(restoring)
    settling.settle(restoring)
    finish_here.end_here(restoring)
    assert acts == ["ended", "unfenced"] and restoring.state is State.FINISHED
    assert f"lxc-start -n web -P {restoring.lxcpath}" in " ".join(capfd.readouterr().err.split())


def another_one(patch: pytest.MonkeyPatch) -> None:
    """In its place, told by its root file system."""
    patch.setattr(origins, "whose", lambda _: Whose.FOREIGN)
    patch.setattr(Layout, "is_own_rootfs", lambda _: False)
    patch.setattr(Layout, "own_snapshots", lambda _: ["1"])
    patch.setattr(origins, "has_its_disk", lambda _: False)


@pytest.mark.parametrize(("unfenced", "what"), [(False, "runs"), (True, "runs"), (True, "lives on"),
                                                (True, "another one")])
def test_what_runs_or_is_another_one_has_not_stopped(restoring: Migration, acts: list[str],
                                                     monkeypatch: pytest.MonkeyPatch, unfenced: bool,
                                                     what: str) -> None:
    left(restoring)
    settling.settle(restoring)
    if unfenced:
        monkeypatch.setattr(origins, "whose", lambda _: Whose.FOREIGN)
    if what == "another one":
        another_one(monkeypatch)
    elif what == "runs":
        monkeypatch.setattr(lxc, "Container", lambda *_: SimpleNamespace(state="RUNNING", rootfs="/nowhere"))
    else:
        monkeypatch.setattr(second_start, "on_disk", lambda *_: 4711)
    settling.refuse_stopped(restoring)


# --- whatever has become of its fence -------------------------------------------------------------------------


@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize("config", [True, False])
def test_it_is_on_record(restoring: Migration, acts: list[str], monkeypatch: pytest.MonkeyPatch, request_: str,
                         config: bool) -> None:
    """What keeps a host's configurations in order has taken the fence away, or all of the file."""
    monkeypatch.setattr(ask_source, "leave_for", lambda *_, **__: math.inf)
    monkeypatch.setattr(ask_source, "state_of_source", lambda *_: State.DUMPED)
    left(restoring)
    settling.settle(restoring)
    monkeypatch.setattr(origins, "whose", lambda _: Whose.FOREIGN)
    file = restoring.lxcpath / "web" / "config"
    if config:
        file.write_text("lxc.uts.name = web\n")
    else:
        def missing(name: str, lxcpath: object) -> None:
            raise ContainerNotFound(name=name, lxcpath=lxcpath)

        file.unlink()
        monkeypatch.setattr(lxc, "Container", missing)
        monkeypatch.setattr(lxc_disk, "is_removed", lambda _: True)
    with pytest.raises(MigratorError, match="was allowed to run"):
        REQUESTS[request_](restoring)
    assert restoring.state is State.RESTORED and acts == ["ended"]
    if config:
        assert "migrator restore-dump web" in after_crash.note(restoring)


@pytest.mark.parametrize("fenced", [True, False])
def test_by_force_it_goes_on_all_the_same(restoring: Migration, acts: list[str], monkeypatch: pytest.MonkeyPatch,
                                          fenced: bool) -> None:
    """Where its source is lost for good: it is what everything else has advised."""
    left(restoring)
    settling.settle(restoring)
    if not fenced:
        monkeypatch.setattr(origins, "whose", lambda _: Whose.FOREIGN)
        (restoring.lxcpath / "web" / "config").write_text("lxc.uts.name = web\n")
    assert force.let_run(restoring, ID, lambda: None)
    assert restoring.ending.forced_at


def test_nor_does_it_hang_on_the_mark(restoring: Migration, acts: list[str]) -> None:
    left(restoring)
    settling.settle(restoring)
    ran_mark.drop(ran_mark.mark(Layout(restoring.lxcpath, "web", ID).spool))
    with pytest.raises(StoppedThere):
        REQUESTS["running"](restoring)


def test_once_it_was_started_that_is_over(restoring: Migration, acts: list[str],
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has chosen its disk is not asked again, should it have stopped once more, with its fence or without."""
    left(restoring)
    settling.settle(restoring)
    settling.go_on(restoring, math.inf)
    settling.refuse_stopped(restoring)
    monkeypatch.setattr(origins, "whose", lambda _: Whose.FOREIGN)
    settling.refuse_stopped(restoring)
    assert acts == ["ended", "started", "unfenced"]


def test_that_it_was_started_needs_no_record(restoring: Migration, acts: list[str],
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    left(restoring)
    settling.settle(restoring)
    honest = Migration.note

    def note(self: Migration, step: str, **detail: Any) -> None:
        if step == "started":
            raise JournalBroken(path="journal.db", reason="database or disk is full")
        honest(self, step, **detail)

    monkeypatch.setattr(Migration, "note", note)
    settling.go_on(restoring, math.inf)
    assert acts == ["ended", "started", "unfenced"]


@pytest.mark.parametrize("fence", [True, False])
def test_what_an_older_version_has_recorded(restoring: Migration, acts: list[str], monkeypatch: pytest.MonkeyPatch,
                                            fence: bool) -> None:
    """The mark and the fence tell it."""
    left(restoring)
    restoring.move(Event.RESTORED, restored_at=1.0)
    monkeypatch.setattr(origins, "whose", lambda _: Whose.OURS if fence else Whose.FOREIGN)
    with pytest.raises(StoppedThere) if fence else contextlib.nullcontext():
        settling.refuse_stopped(restoring)


@pytest.mark.parametrize("error", [GoneThere, StoppedThere, BackThere])
def test_the_driver_does_not_finish_it(monkeypatch: pytest.MonkeyPatch,
                                       error: type[GoneThere | StoppedThere | BackThere]) -> None:
    raised = error(**dict.fromkeys(("name", "destination", "source", "next", "there", "rootfs", "lxcpath", "start",
                                    "back"), "x"))

    def roll_back(*_: object) -> None:
        raise raised

    monkeypatch.setattr(give_back, "roll_back", roll_back)
    driver = drive_back.WayBack.__new__(drive_back.WayBack)
    driver.move = SimpleNamespace(started=None)  # type: ignore[assignment]
    monkeypatch.setattr(drive_back.WayBack, "_try_finish", lambda *_: pytest.fail("its copy is ended"))
    with pytest.raises(error):
        driver._give_up(raised)


def test_the_mark_names_the_boot(restoring: Migration) -> None:
    assert not after_crash.has_stopped(restoring), "it was never let run"
    left(restoring)
    assert after_crash.has_stopped(restoring)
    assert Layout(restoring.lxcpath, "web", ID).spool.is_dir()
