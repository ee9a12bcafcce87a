# SPDX-License-Identifier: GPL-2.0-or-later
"""A spool on a disk that reads badly, and whose lock names who has it."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from migrator.errors.data import SegmentDamaged
from migrator.errors.this_host import Busy
from migrator.transfer import spool
from migrator.transfer.frames import SEGMENT_MAX
from tests.migrator.transfer.spools import cut, store

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


def test_a_dump_of_many_processes_is_verified_at_the_usual_limit_of_open_files(tmp_path: Path) -> None:
    """A login has 1024 at most (setrlimit(2)); CRIU writes half a dozen for each process, and one for each thread."""
    paths = [tmp_path / f"core-{number}.img" for number in range(2000)]
    for path in paths:
        store(path, path.name.encode())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 1024), hard))
    try:
        spool.verify(*paths)
        paths[1990].write_bytes(b"X" * len(paths[1990].name))
        with pytest.raises(SegmentDamaged, match=r"core-1990\.img"):
            spool.verify(*paths)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_all_segments_that_are_verified_are_of_one_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes its name meanwhile is another one, be it good so far."""
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())

    def replaced(honest: Read, fd: int, room: list[Any], at: int) -> int:
        if at == 0:
            copy.rename(path)
        return honest(fd, room, at)

    reads(monkeypatch, replaced)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)  # one after the other
    with pytest.raises(SegmentDamaged) as damaged:
        spool.verify(path)
    assert damaged.value.fields["segment"] == 1


def test_what_cannot_be_opened_is_not_said_to_be_damaged(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its index goes on vouching for it: nothing is sent again because this process had no descriptor left."""
    honest, opened = spool._open, list[Path]()

    def open_(wanted: Path) -> Any:
        opened.append(wanted)
        if wanted == path and opened.count(path) > 1:
            raise OSError(24, "Too many open files")
        return honest(wanted)

    monkeypatch.setattr(spool, "_open", open_)
    with pytest.raises(OSError, match="Too many open files"):
        spool.verify(path)
    assert spool.is_complete(path)


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
