# SPDX-License-Identifier: GPL-2.0-or-later
"""A stream that is read while it still arrives: what is damaged is named, and what breaks off is no end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from migrator.errors.connection import ConnectionLost
from migrator.errors.data import SegmentDamaged
from migrator.transfer import spool
from migrator.transfer.frames import SEGMENT_MAX
from tests.migrator.transfer.spools import cut, store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "disk-1"


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_all_of_it_in_order(path: Path, kept: int) -> None:
    data = os.urandom(2 * SEGMENT_MAX + 5)
    found = store(path, data)
    follower = spool.Follower(path)
    follower.begin(found[:kept])
    for segment in found[kept:]:
        follower.add(segment)
    follower.end(complete=True)
    assert [bytes(piece) for piece in follower] == cut(data)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_damaged_segment_is_named(path: Path, number: int) -> None:
    found = store(path, os.urandom(2 * SEGMENT_MAX + 5))
    with path.open("r+b") as file:
        file.seek(number * SEGMENT_MAX)
        old = file.read(1)[0]
        file.seek(number * SEGMENT_MAX)
        file.write(bytes([old ^ 1]))
    follower = spool.Follower(path)
    follower.begin(found)
    follower.end(complete=True)
    with pytest.raises(SegmentDamaged) as damaged:
        list(follower)
    assert damaged.value.fields["segment"] == number and damaged.value.fields["file"] == path


def test_what_breaks_off_is_no_end(path: Path) -> None:
    found = store(path, os.urandom(SEGMENT_MAX + 5))
    follower = spool.Follower(path)
    follower.begin(found)
    pieces = iter(follower)
    next(pieces)
    follower.end(complete=False)
    with pytest.raises(ConnectionLost, match="disk-1 is not complete"):
        next(pieces)


def test_an_empty_stream_has_an_end_too(path: Path) -> None:
    store(path, b"")
    follower = spool.Follower(path)
    follower.begin([])
    follower.end(complete=True)
    assert list(follower) == []
