# SPDX-License-Identifier: GPL-2.0-or-later
"""The destination's disk is full while what has arrived is imported: it is imported once there is room."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from migrator.copies import bases
from migrator.errors.data import DiskFull, ReceiveFailed
from migrator.host import btrfs
from migrator.record.journal import Journal, Migration
from migrator.record.migration_paths import Layout
from migrator.record.states import Event, Role, State
from migrator.transfer import received_snapshot, room_bounds, spool
from stages.steps import import_round
from tests.migrator.layouts import layout_of
from tests.migrator.transfer.spools import store

ID, UUID = "0badc0de", "11111111-2222-3333-4444-555555555555"
FULL, QUOTA = "No space left on device", "Disk quota exceeded"


@pytest.fixture
def migration(tmp_path: Path) -> Iterator[Migration]:
    layout = Layout(tmp_path / "pool", "web", ID)
    layout.make_folder()
    layout.spool.mkdir()
    store(layout.spool / "disk-1", b"a stream")
    with Journal(tmp_path / "journal.db") as journal:
        made = journal.create(id=ID, role=Role.DESTINATION, name="web", lxcpath=layout.lxcpath, peer="hosta",
                              event=Event.RECEIVE, rounds=[{"uuid": UUID}])
        made.move(Event.RECEIVED)
        yield made


@pytest.fixture
def says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """What `btrfs receive` says before it fails; after "" it does not."""
    program = tmp_path / "bin" / "btrfs"
    program.parent.mkdir()
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.setattr(btrfs, "info", lambda _: SimpleNamespace(received_uuid=UUID, uuid="made"))
    monkeypatch.setattr(btrfs, "sync", lambda _: None)
    monkeypatch.setattr(import_round, "define", lambda *_: "")

    def failing(text: str) -> None:
        program.write_text(f"#!/bin/sh\ncat >/dev/null\n[ -z '{text}' ] || {{ echo '{text}' >&2; exit 1; }}\n")
        program.chmod(0o755)

    return failing


def imported(migration: Migration) -> None:
    import_round.import_round(migration, layout_of(migration))


def stream(migration: Migration) -> Path:
    return layout_of(migration).spool / "disk-1"


@pytest.mark.parametrize("reason", [FULL, QUOTA])
def test_what_has_arrived_is_kept(migration: Migration, says: Callable[[str], None], reason: str) -> None:
    for _ in range(2):
        says(f"ERROR: write to etc/passwd failed: {reason}")
        with pytest.raises(DiskFull, match=reason):
            imported(migration)
        assert spool.is_complete(stream(migration)) and migration.state is State.IMPORTING
        assert bases.on_disk(migration) == set()
    says("")
    imported(migration)
    assert not stream(migration).exists()
    assert str(migration.state) == "imported" and bases.on_disk(migration) == {"made"}


@pytest.mark.parametrize("stands_still", [False, True])
def test_others_have_some_left(migration: Migration, says: Callable[[str], None], monkeypatch: pytest.MonkeyPatch,
                               stands_still: bool) -> None:
    """But for the last changes of a container that stands still, and waits for that."""
    says("")
    left: list[int] = []
    monkeypatch.setattr(received_snapshot, "receive", lambda *_, leave, **__: left.append(leave))
    if stands_still:
        layout = layout_of(migration)
        import_round.receive(migration, layout, stream(migration), 1, UUID)
    else:
        imported(migration)
    assert left == [0 if stands_still else room_bounds.MARGIN]


@pytest.mark.parametrize("said", ["ERROR: crc32 mismatch in command", f"ERROR: creat {FULL} failed: File exists"])
def test_what_cannot_be_received_is_sent_again(migration: Migration, says: Callable[[str], None], said: str) -> None:
    """Whatever it calls its files."""
    says(said)
    with pytest.raises(ReceiveFailed):
        imported(migration)
    assert not stream(migration).exists() and migration.state is State.RECEIVING
