# SPDX-License-Identifier: GPL-2.0-or-later
"""Room for the whole disk is asked for unless an increment comes, on what both hosts have of this very container."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from migrator.copies import make_room
from migrator.errors.containers import InvalidName
from migrator.record import grant
from migrator.record.journal import Journal
from migrator.record.migration_paths import Layout
from migrator.record.states import Event, Role
from migrator.transfer import room_bounds
from stages.steps import room
from tests.stages.asks import begins

ID, FIRST = "0badc0de", "00000001"
ITS, FOREIGN = "11111111-2222-3333-4444-555555555555", "66666666-7777-8888-9999-000000000000"
DISK = 100 << 30


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, list[Any]]]:
    """A destination that has two snapshots, one of them of another container; what room it asks for, and what of them
    it would not drop for that.
    """
    asked: list[Any] = []
    monkeypatch.setattr(make_room, "check_space", lambda _, __, needed, there, **___: asked.append((needed, there)))
    monkeypatch.setattr(room_bounds, "reserve", lambda _: 0)
    folder = Layout(tmp_path, "web", ID).folder
    monkeypatch.setattr(Layout, "bases", lambda _: [
        SimpleNamespace(path=folder / f"{FIRST}.1", stream_uuid=ITS),
        SimpleNamespace(path=folder / "00000002.1", stream_uuid=FOREIGN)])
    with Journal(tmp_path / "journal.db") as journal:
        journal.create(id=FIRST, role=Role.DESTINATION, name="web", lxcpath=tmp_path, peer="hosta",
                       event=Event.RECEIVE, origin=FIRST)
        yield SimpleNamespace(grant=grant.Grant(), journal=journal), asked


@pytest.mark.parametrize(("fields", "needed", "kept"), [
    ({"usable": (ITS,)}, 0, (ITS,)),
    ({"usable": ()}, 2 * DISK, ()),  # it holds another container's, which had its name before
    ({}, 0, (ITS, FOREIGN)),  # an older version starts from whatever both have
], ids=["its own", "another's", "an older version"])
def test_what_the_source_starts_from(here: tuple[Any, list[Any]], tmp_path: Path, fields: dict[str, Any],
                                     needed: int, kept: tuple[str, ...]) -> None:
    service, asked = here
    room.check(service, Layout(tmp_path, "web", ID), begins(disk_bytes=DISK, held=(ITS, FOREIGN), **fields), ID)
    assert asked == [(needed, kept)]


@pytest.mark.parametrize(("origin", "needed"), [(FIRST, 0), (ID, 2 * DISK)])
def test_who_is_told_of_none_sends_all(here: tuple[Any, list[Any]], tmp_path: Path, origin: str, needed: int) -> None:
    """A peer learns only of those of the container that it brings, whatever it says that it has."""
    service, asked = here
    service.grant = grant.Grant(caller="peer:0123", lxcpaths=(tmp_path,))
    room.check(service, Layout(tmp_path, "web", ID), begins(disk_bytes=DISK, usable=(ITS,), held=(ITS,)), origin)
    assert asked == [(needed, (ITS,))]


def test_a_uuid_that_is_none_is_refused(here: tuple[Any, list[Any]], tmp_path: Path) -> None:
    with pytest.raises(InvalidName):
        room.check(here[0], Layout(tmp_path, "web", ID), begins(disk_bytes=DISK, usable=("../x",)), ID)
