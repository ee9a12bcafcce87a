# SPDX-License-Identifier: GPL-2.0-or-later
"""More comes than there is room for, and nobody knew: it ends while the others on that disk still can write."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from migrator import bounds, btrfs, grant
from migrator.errors import NoSpace
from migrator.frames import SEGMENT_MAX
from migrator.service import Service
from migrator.transfer import SourceFile, send_files
from stages import serve
from tests.migrator.wire import connected
from tests.stages.test_allowed import ID, Here, here

__all__ = ["here"]

ROOM = 12 * SEGMENT_MAX


class Disk:
    """The file system of the pool, with ROOM beside what is to stay free; `imported` bytes have their room there."""

    f_blocks, f_frsize = 1 << 40, 1

    def __init__(self, spool: Path) -> None:
        self.spool, self.imported, self.least = spool, 0, bounds.MARGIN + ROOM

    @property
    def f_bavail(self) -> int:
        stream = self.spool / "disk-1"
        left = bounds.MARGIN + ROOM - self.imported - (stream.stat().st_size if stream.exists() else 0)
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
        send_files(connection, {"kind": "disk", "id": ID, "round": 1, "behind": behind},
                   [SourceFile("disk-1", io.BytesIO(os.urandom(ROOM + SEGMENT_MAX)))])
    kept = (here.layout.spool / "disk-1").stat().st_size
    assert ROOM // 2 - behind * SEGMENT_MAX <= kept <= ROOM // 2, "all that could be imported, too, or about that"
    assert deleted == ([here.layout.snapshot(1)] if behind else []), "half a snapshot is of no use to anybody"
    assert disk.f_bavail == bounds.MARGIN + kept and disk.least >= bounds.MARGIN
