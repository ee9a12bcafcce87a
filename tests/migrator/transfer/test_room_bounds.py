# SPDX-License-Identifier: GPL-2.0-or-later
"""How much of a host's room somebody may take who is not root there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from migrator.errors import UsageError
from migrator.errors.data import NoSpace
from migrator.host import btrfs
from migrator.record.detail import ROOT_CALLER
from migrator.transfer import received_snapshot, room_bounds, spool
from migrator.transfer.frames import Kind
from migrator.transfer.room_bounds import MARGIN, SLACK, Bounds
from tests.migrator.transfer.spools import FIRST, WHOLE, end_body, sent
from tests.migrator.wire import connected, listed

GIB = 1 << 30
EMPTY = (Kind.FILE_END, end_body(), 0)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A file system of 1000 GiB."""
    found = SimpleNamespace(f_blocks=1000 * GIB, f_bavail=500 * GIB, f_frsize=1)
    monkeypatch.setattr(os, "statvfs", lambda _: found)
    monkeypatch.setattr(os, "fstatvfs", lambda _: found)
    return found


def test_a_twentieth_stays_free(disk: SimpleNamespace, tmp_path: Path) -> None:
    assert room_bounds.reserve(tmp_path) == 50 * GIB
    disk.f_blocks = GIB
    assert room_bounds.reserve(tmp_path) == MARGIN
    for caller, leave in ((ROOT_CALLER, 0), (None, 0), ("peer:0123", MARGIN), (f"{ROOT_CALLER}:hosta", MARGIN)):
        assert room_bounds.for_caller(tmp_path, caller) == leave


def test_a_stream_is_held_to_what_was_announced(disk: SimpleNamespace, tmp_path: Path) -> None:
    held = room_bounds.of_disk(tmp_path, 3 * GIB)
    assert held == Bounds(50 * GIB, 6 * GIB + SLACK, twice=True)
    held.check("disk-1", 6 * GIB + SLACK, 1, None, 0)
    with pytest.raises(UsageError, match="more of disk-1 than 10"):
        held.check("disk-1", 6 * GIB + SLACK + 1, 1, None, 0)
    assert room_bounds.of_disk(tmp_path, -1).most == SLACK
    assert room_bounds.of_disk(tmp_path, None).most is None  # an older version has begun it


@pytest.mark.parametrize(("imported", "stays"), [(0, 7 * GIB), (5 * GIB, 2 * GIB), (8 * GIB, 0)])
@pytest.mark.parametrize("held", [room_bounds.OF_DISK, Bounds(50 * GIB, None, twice=True)], ids=["root", "a peer"])
def test_a_stream_leaves_room_for_its_import(disk: SimpleNamespace, held: Bounds, imported: int, stays: int) -> None:
    """Of whatever length it turns out to be: else it ends where nothing is left to the others there."""
    disk.f_bavail = held.leave + stays + 1
    held.check("disk-1", 7 * GIB, 1, None, 0, imported)
    with pytest.raises(OSError, match="No space left"):
        held.check("disk-1", 7 * GIB, 2, None, 0, imported)


def test_how_much_room_it_needs_is_told(disk: SimpleNamespace, tmp_path: Path) -> None:
    """With what is to stay free, or it would be less than there is."""
    disk.f_bavail = MARGIN + 7
    handlers = {"transfer": lambda fields: spool.receive(tmp_path, listed(fields["files"]), bounds=room_bounds.OF_DISK)}
    with connected(handlers) as (connection, _):
        with pytest.raises(NoSpace) as caught:
            sent(connection, *WHOLE)
        disk.f_bavail += 1
        assert sent(connection, *WHOLE)["files"]["disk-1"]["bytes"] == 4
    assert (caught.value.fields["free"], caught.value.fields["needed"]) == ("64.0 MiB", "68.0 MiB")


@pytest.mark.parametrize("announced", [None, 1 << 50])
def test_what_stays_free_does_also_where_the_size_was_said(disk: SimpleNamespace, announced: int | None) -> None:
    held = Bounds(50 * GIB)
    disk.f_bavail = 50 * GIB + 7
    held.check("disk-1", 100, 7, announced, 0)
    with pytest.raises(OSError, match="No space left"):
        held.check("disk-1", 100, 8, announced, 0)


def test_images_on_a_file_system_of_their_own(tmp_path: Path) -> None:
    """That is as large as they may be; a plain folder is the host's own disk, or its /run."""
    assert room_bounds.of_images(Path("/proc")).leave == 0
    assert room_bounds.of_images(tmp_path).leave >= MARGIN


@pytest.mark.parametrize(("most", "error"), [(3, UsageError), (4, None)])
def test_no_more_arrives(tmp_path: Path, most: int, error: type[Exception] | None) -> None:
    held = Bounds(0, most)
    handlers = {"transfer": lambda fields: spool.receive(tmp_path, listed(fields["files"]), bounds=held)}
    with connected(handlers) as (connection, _):
        if error is None:
            assert sent(connection, *WHOLE)["files"]["disk-1"]["bytes"] == 4
            return
        with pytest.raises(error, match="more of disk-1"):
            sent(connection, *WHOLE)
    assert (tmp_path / "disk-1").stat().st_size == 0
    assert WHOLE[0] == FIRST


@pytest.mark.parametrize("room", [True, False])
def test_an_empty_file_takes_room_too(disk: SimpleNamespace, tmp_path: Path, room: bool) -> None:
    disk.f_bavail = 50 * GIB if room else 50 * GIB - 1
    handlers = {"transfer": lambda fields: spool.receive(tmp_path, listed(fields["files"]), bounds=Bounds(50 * GIB))}
    with connected(handlers) as (connection, _):
        if room:
            assert sent(connection, FIRST, EMPTY)["files"]["disk-1"]["bytes"] == 0
            return
        with pytest.raises(NoSpace):
            sent(connection, FIRST, EMPTY)
    assert [path.name for path in tmp_path.iterdir()] == [spool.LOCK_NAME]


def test_what_is_here_already_takes_none(disk: SimpleNamespace, tmp_path: Path) -> None:
    """After a cut, with a disk that others have filled meanwhile, all the same."""
    handlers = {"transfer": lambda fields: spool.receive(tmp_path, listed(fields["files"]), bounds=Bounds(50 * GIB))}
    with connected(handlers) as (connection, _):
        sent(connection, *WHOLE)
        disk.f_bavail = 50 * GIB - 1
        again = (Kind.FILE, json.dumps({"file": 0, "keep": 1}).encode(), 0)
        assert sent(connection, again, WHOLE[2])["files"]["disk-1"]["bytes"] == 4


def test_what_is_received_leaves_room_too(disk: SimpleNamespace, tmp_path: Path,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte that is written may take a block: no bound of the stream bounds that."""
    taken: list[bytes] = []

    def pieces() -> list[bytes]:
        return [b"one", b"two"]

    def receive(stream: object, _folder: Path, **_: object) -> None:
        for piece in stream:  # type: ignore[attr-defined]
            taken.append(piece)
            disk.f_bavail -= 451 * GIB

    monkeypatch.setattr(btrfs, "receive", receive)
    (tmp_path / "spool").mkdir()
    with pytest.raises(NoSpace, match="must stay free"):
        received_snapshot.receive(pieces(), tmp_path / "web" / "1", tmp_path / "spool", leave=50 * GIB)
    assert taken == [b"one"]
