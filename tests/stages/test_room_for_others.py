# SPDX-License-Identifier: GPL-2.0-or-later
"""More comes than there is room for, and nobody knew: it ends while the others on that disk still can write."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest

from migrator.errors.data import NoSpace
from migrator.host import btrfs
from migrator.record import grant
from migrator.record.states import Event
from migrator.remote.answering import Service
from migrator.transfer import received_snapshot, room_bounds
from migrator.transfer.frames import SEGMENT_MAX
from migrator.transfer.messages import DiskTransfer
from migrator.transfer.segments import INDEX_SUFFIX, Segment, digest_of, line
from migrator.transfer.sender import SourceFile, send_files
from stages import serve
from stages.steps import import_round, room
from tests.migrator.wire import connected
from tests.stages.callers import ID, UUID, Here, here

__all__ = ["here"]

ROOM = 12 * SEGMENT_MAX
KEPT = 5 * SEGMENT_MAX


class Disk:
    """The file system of the pool, with ROOM beside what is to stay free; `imported` bytes have their room there.

    An earlier import has made `part` bytes, which are free again some time after they were deleted.
    """

    f_blocks, f_frsize = 1 << 40, 1

    def __init__(self, spool: Path) -> None:
        self.spool, self.imported, self.part, self.least = spool, 0, 0, room_bounds.MARGIN + ROOM

    @property
    def f_bavail(self) -> int:
        stream = self.spool / "disk-1"
        left = room_bounds.MARGIN + ROOM - self.imported - self.part - (stream.stat().st_size if stream.exists() else 0)
        self.least = min(self.least, left)
        return left


@pytest.mark.parametrize("behind", [False, True], ids=["imported later", "imported behind"])
def test_the_others_have_room_left(here: Here, monkeypatch: pytest.MonkeyPatch, behind: bool) -> None:
    disk = Disk(here.layout.spool)
    deleted: list[Path] = []

    def receive(stream: Iterable[memoryview], _folder: Path, **_: object) -> None:
        for piece in stream:
            disk.imported += len(piece)

    def delete(path: Path) -> None:
        deleted.append(path)
        disk.imported = 0

    here.begun(grant.ROOT)
    monkeypatch.setattr(btrfs, "receive", receive)
    monkeypatch.setattr(btrfs, "delete", delete)
    monkeypatch.setattr(os, "statvfs", lambda _: disk)
    monkeypatch.setattr(os, "fstatvfs", lambda _: disk)
    handlers = serve.handlers(Service(here.journal, here.stack, grant.ROOT))
    with connected(handlers) as (connection, _), pytest.raises(NoSpace):
        send_files(connection, DiskTransfer(id=ID, round=1, behind=behind),
                   [SourceFile("disk-1", io.BytesIO(os.urandom(ROOM + SEGMENT_MAX)))])
    kept = (here.layout.spool / "disk-1").stat().st_size
    assert ROOM // 2 - behind * SEGMENT_MAX <= kept <= ROOM // 2, "all that could be imported, too, or about that"
    assert deleted == ([here.layout.snapshot(1)] if behind else []), "half a snapshot is of no use to anybody"
    assert disk.f_bavail == room_bounds.MARGIN + kept and disk.least >= room_bounds.MARGIN


class Cut:
    """Of a disk that fills ROOM, spooled and imported, KEPT bytes have come, and are imported, when the line is cut."""

    def __init__(self, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
        self.here, self.disk, self.waited = here, Disk(here.layout.spool), 0
        self.target, self.data = here.layout.snapshot(1), os.urandom(ROOM // 2)
        here.begun(grant.ROOT)
        spooled = here.layout.spool / "disk-1"
        pieces = [self.data[first:first + SEGMENT_MAX] for first in range(0, KEPT, SEGMENT_MAX)]
        spooled.write_bytes(b"".join(pieces))
        index = b"".join(line(Segment(len(piece), digest_of(piece))) for piece in pieces)
        spooled.with_name(spooled.name + INDEX_SUFFIX).write_bytes(index)
        self.target.mkdir()
        self.disk.part = KEPT
        monkeypatch.setattr(btrfs, "receive", self.receive)
        monkeypatch.setattr(btrfs, "wait_deleted", self.wait_deleted)
        monkeypatch.setattr(os, "statvfs", lambda _: self.disk)
        monkeypatch.setattr(os, "fstatvfs", lambda _: self.disk)

    def receive(self, stream: Iterable[memoryview], _folder: Path, **_: object) -> None:
        for piece in stream:
            self.disk.imported += len(piece)

    def wait_deleted(self, _: Path) -> None:
        self.waited += 1
        self.disk.part *= self.target.exists()

    def goes_on(self, *, behind: bool = False) -> None:
        service = Service(self.here.journal, self.here.stack, grant.ROOT)
        with connected(serve.handlers(service)) as (connection, _):
            send_files(connection, DiskTransfer(id=ID, round=1, behind=behind),
                       [SourceFile("disk-1", io.BytesIO(self.data))])
        if service.behind:
            service.behind.wait(None)


@pytest.fixture
def cut(here: Here, monkeypatch: pytest.MonkeyPatch) -> Cut:
    return Cut(here, monkeypatch)


@pytest.mark.parametrize("behind", [False, True], ids=["imported later", "imported behind"])
def test_what_a_broken_off_import_has_taken_is_free_again(cut: Cut, behind: bool) -> None:
    """It is of no use to anybody, and may have more than what is free: what goes on is held to that."""
    cut.goes_on(behind=behind)
    assert (cut.here.layout.spool / "disk-1").read_bytes() == cut.data
    assert cut.waited == 1 and cut.disk.imported == behind * len(cut.data) and cut.disk.least >= room_bounds.MARGIN


def test_with_room_enough_it_is_not_waited_for(cut: Cut) -> None:
    cut.disk.part = -2 * ROOM
    cut.goes_on(behind=True)
    assert cut.waited == 0 and cut.disk.imported == len(cut.data)


def test_what_an_import_has_brought_to_its_end_stays(cut: Cut, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it is imported anew: the next attempt can start from it."""
    monkeypatch.setattr(btrfs, "is_subvolume", Path.is_dir)
    monkeypatch.setattr(btrfs, "info", lambda _: SimpleNamespace(received_uuid="whole", uuid="its own"))
    room.regain(cut.here.layout, 1, room_bounds.MARGIN)
    assert cut.target.is_dir() and cut.waited == 1


@pytest.mark.parametrize("stands_still", [False, True])
def test_before_it_is_imported_from_the_spool(cut: Cut, monkeypatch: pytest.MonkeyPatch, stands_still: bool) -> None:
    """But nothing waits for btrfs while a container stands still."""
    told: list[bool] = []

    def receive(*_: object, **__: object) -> None:
        told.append(cut.target.exists())
        raise EOFError

    migration = cut.here.journal.latest("web", cut.here.pool)
    assert migration
    migration.move(Event.RECEIVED, rounds=[{"uuid": UUID}])
    if not stands_still:
        migration.move(Event.IMPORT)
    monkeypatch.setattr(received_snapshot, "receive", receive)
    with pytest.raises(EOFError):
        import_round.receive(migration, cut.here.layout, cut.here.layout.spool / "disk-1", 1, UUID)
    assert told == [stands_still] and cut.waited == (not stands_still)
