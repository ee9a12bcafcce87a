# SPDX-License-Identifier: GPL-2.0-or-later
"""What a destination says that it holds: believed as far as a file can have it, and kept in no more memory."""

from __future__ import annotations

import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any, cast

import pytest

from migrator.errors.connection import ProtocolError
from migrator.transfer import sender, spool
from migrator.transfer.frames import DIGEST_SIZE, HELD_MAX, SEGMENT_MAX, Frame, Kind
from migrator.transfer.messages import Held, Transfer
from migrator.transfer.rpc import Connection
from migrator.transfer.sender import SourceFile, send_files
from tests.migrator.transfer.spools import store
from tests.migrator.wire import connected, listed


class Said:
    """A connection over which digests of files come, each frame with so many of one."""

    timeout = 15.0

    def __init__(self, *frames: tuple[int, int]) -> None:
        self.frames = list(frames)

    def receive(self, *, within: float) -> Frame:
        assert within == self.timeout
        number, count = self.frames.pop(0)
        return Frame(Kind.HELD, 0, memoryview(struct.pack("!I", number) + b"d" * count * DIGEST_SIZE))


def read(files: list[SourceFile], counts: dict[str, Any], *frames: tuple[int, int]) -> list[int]:
    """Of how many segments of each file the digests are kept."""
    said = Said(*frames)
    held = sender._read_held(cast("Connection", said), Held(held=counts), files)
    assert said.frames == []
    return [len(each) // DIGEST_SIZE for each in held]


def file(size: int | None, name: str = "disk-1") -> SourceFile:
    return SourceFile(name, Path("/dev/null"), size)


@pytest.mark.parametrize(("size", "kept"), [
    (0, 1), (SEGMENT_MAX - 1, 1), (SEGMENT_MAX, 2), (9 * SEGMENT_MAX, 10), (9 * SEGMENT_MAX + 1, 10), (None, 13)])
def test_no_more_digests_are_kept_than_a_file_can_have(size: int | None, kept: int,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "HELD_KEPT", 13)
    assert read([file(size)], {"0": 40}, *[(0, 8)] * 5) == [kept]


def test_each_file_has_its_own() -> None:
    files = [file(SEGMENT_MAX, "a"), file(9 * SEGMENT_MAX, "b"), file(None, "c")]
    assert read(files, {"0": 1, "1": 5, "2": 3, "3": 7, "x": 9}, (0, 1), (2, 3), (1, 4), (1, 1)) == [1, 5, 3]


@pytest.mark.parametrize("frames", [[(0, 3)], [(0, 1), (0, 2)], [(1, 1)], [(2, 1)]])
def test_more_than_it_said_is_nonsense(frames: list[tuple[int, int]]) -> None:
    with pytest.raises(ProtocolError):
        read([file(None), file(None)], {"0": 2}, *frames)


def test_what_it_floods_a_source_with_takes_no_memory() -> None:
    """What is one file, as the increment of a container that stands still; 2 MiB in each frame."""
    frames = 40
    tracemalloc.start()
    assert read([file(100)], {"0": frames * HELD_MAX}, *[(0, HELD_MAX)] * frames) == [1]
    assert tracemalloc.get_traced_memory()[1] < 10 * HELD_MAX * DIGEST_SIZE
    tracemalloc.stop()


@pytest.mark.parametrize("held", [3, 4, 5])
@pytest.mark.parametrize("known", [True, False])
def test_what_is_there_beyond_the_file_is_cut_off(tmp_path: Path, held: int, known: bool,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an earlier attempt that was longer; and what lies beyond the digests that are kept is sent anew."""
    monkeypatch.setattr(sender, "HELD_KEPT", 2)
    data = os.urandom(3 * SEGMENT_MAX)
    store(tmp_path / "disk-1", data + bytes((held - 3) * SEGMENT_MAX))
    (tmp_path / "in").write_bytes(data)
    handlers: Any = {"transfer": lambda fields: spool.receive(tmp_path, listed(fields["files"]))}
    with connected(handlers) as (connection, _):
        result = send_files(connection, Transfer(),
                            [SourceFile("disk-1", tmp_path / "in", len(data) if known else None)])
    assert result.resumed_bytes == (3 if known else 2) * SEGMENT_MAX
    assert b"".join(bytes(piece) for piece in spool.verified(tmp_path / "disk-1")) == data
