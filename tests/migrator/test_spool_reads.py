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


@pytest.mark.parametrize(("length", "kept"), [
    (3 * SEGMENT_MAX, 3), (3 * SEGMENT_MAX - 1, 2), (2 * SEGMENT_MAX, 2), (SEGMENT_MAX, 1), (SEGMENT_MAX - 1, 0),
    (0, 0),
])
def test_an_index_vouches_for_no_more_than_the_file_has(tmp_path: Path, length: int, kept: int) -> None:
    """A power cut may have brought the index to the disk before all of the data."""
    found = store(tmp_path / "disk-1", os.urandom(3 * SEGMENT_MAX))
    os.truncate(tmp_path / "disk-1", length)
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        index = spool._held(folder, "disk-1")
    finally:
        os.close(folder)
    assert index.segments == found[:kept] and (index.end is not None) is (kept == 3)


@pytest.mark.parametrize("name", ["disk-1", "disk-1.index"])
def test_no_link_is_taken_for_what_is_here(tmp_path: Path, name: str) -> None:
    store(tmp_path / "disk-1", b"data")
    (tmp_path / name).rename(tmp_path / "elsewhere")
    (tmp_path / name).symlink_to("elsewhere")
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="symbolic links"):
            spool._held(folder, "disk-1")
    finally:
        os.close(folder)
