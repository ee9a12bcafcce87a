# SPDX-License-Identifier: GPL-2.0-or-later
"""Which commands a stream of another host's may have, however it is cut into pieces."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrator import send_stream
from migrator.errors import ReceiveFailed

FALLOCATE, ENCODED_WRITE, END = 23, 25, 21


def stream(*commands: tuple[int, int]) -> bytes:
    """Each command's number, and how many bytes its body has."""
    parts = [send_stream.HEADER.pack(length, command, 0) + b"\xff" * length for command, length in commands]
    return send_stream.START.pack(send_stream.MAGIC, 1) + b"".join(parts)


def cut(data: bytes, places: list[int]) -> Iterator[bytes]:
    ends = sorted({min(place, len(data)) for place in places} | {0, len(data)})
    return (data[first:last] for first, last in itertools.pairwise(ends))


PLACES = st.lists(st.integers(0, 200), max_size=12)
COMMANDS = st.lists(st.tuples(st.integers(1, send_stream.LAST), st.integers(0, 40)), max_size=6)


@given(COMMANDS, PLACES)
def test_a_plain_one_passes_as_it_is(commands: list[tuple[int, int]], places: list[int]) -> None:
    data = stream(*commands, (END, 0))
    assert b"".join(send_stream.plain(cut(data, places), "/pool")) == data


@given(COMMANDS, COMMANDS, PLACES, st.sampled_from([FALLOCATE, ENCODED_WRITE, 24, 26, 65535]))
def test_another_command_is_not_reached(before: list[tuple[int, int]], after: list[tuple[int, int]], places: list[int],
                                        command: int) -> None:
    """However few bytes it has, it may reserve terabytes."""
    good = stream(*before)
    passed = b""
    with pytest.raises(ReceiveFailed, match=f"command {command}"):
        for piece in send_stream.plain(cut(stream(*before, (command, 7), *after), places), "/pool"):
            passed += piece
    assert len(passed) < len(good) + send_stream.HEADER.size, "btrfs has not the whole header of it"


@given(st.binary(max_size=60), PLACES)
def test_what_is_no_stream_is_left_to_btrfs(data: bytes, places: list[int]) -> None:
    if not data.startswith(send_stream.MAGIC):
        assert b"".join(send_stream.plain(cut(data, places), "/pool")) == data
