# SPDX-License-Identifier: GPL-2.0-or-later
"""It was let run, and has stopped in this very boot, with who restored it: the source's frozen memory is not ended."""

from __future__ import annotations

import argparse
import contextlib
import math
import shutil
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from migrator import aftermath, cli, clock, container_config, identity, lxc
from migrator.errors import GoneThere, OutOfOrder, StoppedThere
from migrator.identity import Whose
from migrator.journal import Migration
from migrator.layout import Layout
from migrator.states import State
from stages import ask_source, drive, finish, heal, restore_dump, restore_over, rollback, settling
from tests.stages.test_settling import ID, acts, mark, restoring

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


REQUESTS: dict[str, Callable[[Migration], object]] = {
    "restore": lambda of: restore_over.restore_for_source(asked(of), {"id": ID, "limit": 60}, lambda: math.inf),
    "running": lambda of: finish.running(asked(of), {"id": ID}),
    "rollback": lambda of: rollback.abandon(asked(of), {"id": ID}),
    "rollback there": rollback.give_up_here,
    "resume there": lambda of: heal._on_destination(argparse.Namespace(max_downtime=None), of),
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
    assert "migrator restore-dump web" in aftermath.note(restoring)


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

    def leave_for(_args: object, of: Migration, limit: float, *, by_hand: bool = False) -> float:
        given.append((of, by_hand))
        return 0.0 if taken_back else clock.now() + limit

    monkeypatch.setattr(ask_source, "leave_for", leave_for)
    monkeypatch.setattr(cli, "require_root", lambda _: None)
    monkeypatch.setattr(cli, "container_of", lambda _: ("web", restoring.lxcpath))
    monkeypatch.setattr(restore_dump, "DEFAULT_PATH", restoring.journal_path)
    monkeypatch.setattr(restore_dump, "Journal", lambda _: contextlib.nullcontext(restoring.journal))
    monkeypatch.setattr(restore_dump, "locked", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(restore_dump, "arrived", lambda *_: restoring)
    args = argparse.Namespace(max_downtime=60.0, force=None, dry_run=False)
    if taken_back:
        with pytest.raises(OutOfOrder, match="runs on hosta again") as error:
            restore_dump.run(args)
        assert "migrator resume web" in error.value.hint
    else:
        assert "runs here" in restore_dump.run(args).text
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
    rollback.abandon(asked(restoring), {"id": ID, "gone": True})
    assert restoring.detail["given_way"]


def test_one_whose_end_was_asked_for_is_left_to_its_administrator(restoring: Migration, acts: list[str],
                                                                  monkeypatch: pytest.MonkeyPatch,
                                                                  capfd: pytest.CaptureFixture[str]) -> None:
    """The source's copy is gone by then."""
    monkeypatch.setattr(finish, "drop_way_back", lambda _: None)
    monkeypatch.setattr(identity, "rootfs_uuid", lambda _: "")
    monkeypatch.setattr("migrator.btrfs.is_subvolume", lambda _: False)
    left(restoring)
    settling.settle(restoring)
    finish.end_here(restoring)
    assert acts == ["ended", "unfenced"] and restoring.state is State.FINISHED
    assert f"lxc-start -n web -P {restoring.lxcpath}" in " ".join(capfd.readouterr().err.split())


@pytest.mark.parametrize(("whose", "state"), [(Whose.OURS, "RUNNING"), (Whose.FOREIGN, "STOPPED")])
def test_what_runs_or_is_another_one_has_not_stopped(restoring: Migration, acts: list[str],
                                                     monkeypatch: pytest.MonkeyPatch, whose: Whose,
                                                     state: str) -> None:
    left(restoring)
    settling.settle(restoring)
    monkeypatch.setattr(lxc, "Container", lambda *_: SimpleNamespace(state=state, rootfs="/nowhere"))
    monkeypatch.setattr(identity, "whose", lambda _: whose)
    settling.refuse_stopped(restoring)


@pytest.mark.parametrize("error", [GoneThere, StoppedThere])
def test_the_driver_does_not_finish_it(monkeypatch: pytest.MonkeyPatch, error: type[GoneThere | StoppedThere]) -> None:
    raised = error(**dict.fromkeys(("name", "destination", "source", "next", "there", "rootfs", "lxcpath", "start",
                                    "back"), "x"))

    def roll_back(*_: object) -> None:
        raise raised

    monkeypatch.setattr(rollback, "roll_back", roll_back)
    driver = drive.Drive.__new__(drive.Drive)
    driver.migration = SimpleNamespace()  # type: ignore[assignment]
    monkeypatch.setattr(drive.Drive, "_try_finish", lambda *_: pytest.fail("its copy is ended"))
    with pytest.raises(error):
        driver._give_up(raised)


def test_the_mark_names_the_boot(restoring: Migration) -> None:
    assert not aftermath.has_stopped(restoring), "it was never let run"
    left(restoring)
    assert aftermath.has_stopped(restoring)
    assert Layout(restoring.lxcpath, "web", ID).spool.is_dir()
