# SPDX-License-Identifier: GPL-2.0-or-later
"""A spool on a disk that reads badly, and whose lock names who has it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from migrator import spool
from migrator.errors import Busy, SegmentDamaged
from migrator.frames import SEGMENT_MAX
from tests.migrator.test_spool import cut, store

Read = Callable[[int, list[Any], int], int]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    store(tmp_path / "disk-1", os.urandom(SEGMENT_MAX + 1000))
    return tmp_path / "disk-1"


def reads(monkeypatch: pytest.MonkeyPatch, how: Callable[[Read, int, list[Any], int], int]) -> None:
    honest = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, room, at: how(honest, fd, room, at))


def test_a_disk_that_gives_little_at_a_time_is_read_to_the_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def little(honest: Read, fd: int, room: list[Any], at: int) -> int:
        return honest(fd, [room[0][:300_001]], at)

    reads(monkeypatch, little)
    assert [bytes(piece) for piece in spool.verified(path)] == cut(path.read_bytes())
    spool.verify(path)


def test_a_disk_that_cannot_be_read_is_damaged(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(honest: Read, fd: int, room: list[Any], at: int) -> int:
        if at >= SEGMENT_MAX:
            raise OSError(5, "Input/output error")
        return honest(fd, room, at)

    reads(monkeypatch, broken)
    for check in (lambda: list(spool.verified(path)), lambda: spool.verify(path)):
        store(path, os.urandom(SEGMENT_MAX + 1000))
        with pytest.raises(SegmentDamaged) as damaged:
            check()
        assert damaged.value.fields["segment"] == 1
        assert not spool.is_complete(path), "its index does not vouch for it any more"


def test_a_busy_spool_names_who_has_it(tmp_path: Path) -> None:
    """What an earlier one with a longer number has left in the lock is no part of it."""
    lock = tmp_path / spool.LOCK_NAME
    lock.write_text("12345678901234\n")
    with spool._lock(tmp_path):
        assert lock.read_text() == f"{os.getpid()}\n"
        before = len(list(Path("/proc/self/fd").iterdir()))
        with pytest.raises(Busy, match=rf"process {os.getpid()}\)"):
            spool._lock(tmp_path)
        assert len(list(Path("/proc/self/fd").iterdir())) == before
        lock.write_text("")
        with pytest.raises(Busy, match=re.escape("(process unknown)")):
            spool._lock(tmp_path)
        lock.write_text("1" * 30)
        with pytest.raises(Busy, match=rf"process {'1' * 20}\)"):
            spool._lock(tmp_path)
