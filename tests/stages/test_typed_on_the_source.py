# SPDX-License-Identifier: GPL-2.0-or-later
"""The destination's stages, typed on a host that the container has been on before: an earlier stay is not meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from migrator.errors import NoMigration, OutOfOrder
from migrator.journal import Journal, Migration
from migrator.states import Event, Role, State
from stages import import_data

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


def goes(came: Migration, **detail: object) -> Migration:
    return came.journal.create(id="00000002", role=Role.SOURCE, name="web", lxcpath=came.lxcpath, peer="root@hostb",
                               event=Event.SEND, rounds=[], destination_host="hostb", **detail)


@pytest.mark.parametrize("stage", ["import-data", "restore-dump"])
def test_it_says_where_to_type_it(stayed: Migration, stage: str) -> None:
    leaves = goes(stayed)
    for event in (Event.SENT, Event.FREEZE, Event.OFFER):
        leaves.move(event)
    with pytest.raises(OutOfOrder, match="source") as error:
        import_data.arrived(stayed.journal, "web", stayed.lxcpath, stage)
    assert f"migrator {stage} web   (on hostb)" in error.value.hint


def test_what_goes_by_itself_goes_on_here(stayed: Migration) -> None:
    goes(stayed, one_shot=True)
    with pytest.raises(OutOfOrder) as error:
        import_data.arrived(stayed.journal, "web", stayed.lxcpath, "restore-dump")
    assert error.value.hint.endswith("migrator resume web")


def test_what_has_left_has_no_migration_to_go_on_with(stayed: Migration) -> None:
    leaves = goes(stayed)
    for event in (Event.SENT, Event.ROLL_BACK, Event.ROLLED_BACK):
        leaves.move(event)
    with pytest.raises(NoMigration):
        import_data.arrived(stayed.journal, "web", stayed.lxcpath, "restore-dump")


def test_the_newest_stay_is_meant(stayed: Migration) -> None:
    assert import_data.arrived(stayed.journal, "web", stayed.lxcpath, "restore-dump").state is State.FINISHED
    leaves = goes(stayed)
    for event in (Event.SENT, Event.FREEZE, Event.OFFER, Event.TAKEN, Event.FINISH, Event.FINISHED):
        leaves.move(event)
    again = stayed.journal.create(id="00000003", role=Role.DESTINATION, name="web", lxcpath=stayed.lxcpath,
                                  peer="hostb", event=Event.RECEIVE, rounds=[])
    assert import_data.arrived(stayed.journal, "web", stayed.lxcpath, "import-data").id == again.id
