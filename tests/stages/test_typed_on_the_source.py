# SPDX-License-Identifier: GPL-2.0-or-later
"""Stages that are typed where, or when, they do not belong: by whom they go on is said, and where.

The destination's, on a host that the container has been on before: an earlier stay is not meant.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from migrator.copies import standing
from migrator.errors.containers import NoMigration, OutOfOrder
from migrator.host import lxc
from migrator.record.journal import Journal, Migration
from migrator.record.states import Event, Role, State
from stages import prepare_data
from stages.steps import prologue
from stages.steps.options import MoveRequest, NamedContainer

CAME = (Event.RECEIVED, Event.IMPORT, Event.IMPORTED, Event.RECEIVE_DUMP, Event.DUMP_RECEIVED, Event.OWN, Event.RESTORE,
        Event.RESTORED, Event.FINISHED)


@pytest.fixture
def stayed(tmp_path: Path) -> Migration:
    """It has come here, and that has ended."""
    came = Journal(tmp_path / "journal.db").create(id="00000001", role=Role.DESTINATION, name="web", lxcpath=tmp_path,
                                                   peer="hosta", event=Event.RECEIVE, rounds=[])
    for event in CAME:
        came.move(event)
    return came


def named(migration: Migration) -> NamedContainer:
    return NamedContainer(migration.name, str(migration.lxcpath))


def goes(came: Migration, **detail: object) -> Migration:
    return came.journal.create(id="00000002", role=Role.SOURCE, name="web", lxcpath=came.lxcpath, peer="root@hostb",
                               event=Event.SEND, rounds=[], destination_host="hostb", **detail)


@pytest.mark.parametrize("stage", ["import-data", "restore-dump"])
def test_it_says_where_to_type_it(stayed: Migration, stage: str) -> None:
    leaves = goes(stayed)
    for event in (Event.SENT, Event.FREEZE, Event.OFFER):
        leaves.move(event)
    with pytest.raises(OutOfOrder, match="source") as error:
        prologue.arrived(stayed.journal, named(stayed), stage)
    assert f"migrator {stage} web   (on hostb)" in error.value.hint


def test_what_goes_by_itself_goes_on_here(stayed: Migration) -> None:
    goes(stayed, one_shot=True)
    with pytest.raises(OutOfOrder) as error:
        prologue.arrived(stayed.journal, named(stayed), "restore-dump")
    assert error.value.hint.endswith("migrator resume web")


def test_what_has_left_has_no_migration_to_go_on_with(stayed: Migration) -> None:
    leaves = goes(stayed)
    for event in (Event.SENT, Event.ROLL_BACK, Event.ROLLED_BACK):
        leaves.move(event)
    with pytest.raises(NoMigration):
        prologue.arrived(stayed.journal, named(stayed), "restore-dump")


def test_the_newest_stay_is_meant(stayed: Migration) -> None:
    assert prologue.arrived(stayed.journal, named(stayed), "restore-dump").state is State.FINISHED
    leaves = goes(stayed)
    for event in (Event.SENT, Event.FREEZE, Event.OFFER, Event.TAKEN, Event.FINISH, Event.FINISHED):
        leaves.move(event)
    again = stayed.journal.create(id="00000003", role=Role.DESTINATION, name="web", lxcpath=stayed.lxcpath,
                                  peer="hostb", event=Event.RECEIVE, rounds=[])
    assert prologue.arrived(stayed.journal, named(stayed), "import-data").id == again.id


@pytest.mark.parametrize(("reached", "next_"), [
    ((), "migrator create-dump web -d root@hostb"),
    ((Event.OFFER,), "migrator create-dump web -d root@hostb"),
    ((Event.OFFER, Event.TAKEN), "migrator restore-dump web   (on hostb)"),
    ((Event.OFFER, Event.TAKEN, Event.FINISH), "migrator finish web"),
    ((Event.ROLL_BACK,), "migrator rollback web"),
])
def test_what_stands_still_is_not_to_be_thawed_for_another_round(
        stayed: Migration, monkeypatch: pytest.MonkeyPatch, reached: tuple[Event, ...], next_: str) -> None:
    """LXC calls it frozen, or stopped, as its move has come so far: it may run on hostb. Nobody is asked for that."""
    leaves = goes(stayed, pid=1, cgroup="/nowhere", ports=[])
    for event in (Event.SENT, Event.FREEZE, *reached):
        leaves.move(event)
    monkeypatch.setattr(prologue, "DEFAULT_PATH", stayed.journal.path)
    monkeypatch.setattr(prologue, "locked", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(prepare_data, "connected", lambda *_: pytest.fail("nobody is to be asked"))
    monkeypatch.setattr(standing, "started_anew", lambda _: False)
    monkeypatch.setattr(lxc.Container, "__init__", lambda *_: None)
    monkeypatch.setattr(lxc.Container, "state", "FROZEN")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    with pytest.raises(OutOfOrder, match="is past it") as error:
        request = MoveRequest(named(stayed), "root@hostb")
        prepare_data.run(prepare_data.PrepareDataOptions(request))
    assert error.value.hint == f"Next: {next_}"
