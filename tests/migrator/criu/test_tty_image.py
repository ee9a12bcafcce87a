# SPDX-License-Identifier: GPL-2.0-or-later
"""Whose controlling terminal a terminal is, in CRIU's image."""

from __future__ import annotations

import os
import pty
import signal
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrator.criu import tty_image

HEAD = bytes.fromhex("19435654" "36304559")
CONSOLE = (0x8804, 0xF7)
# As CRIU 4.2.1 wrote them for LXC's console that an init and, in a session of its own, a getty have open; and for a
# pseudo-terminal whose both ends are in the container. Termios and window size are cut short.
Fields = list[tuple[int, "int | bytes"]]
FIELDS: Fields = [(1, 9), (2, 5), (3, 0), (4, 0), (5, 0), (6, 0), (7, 0), (8, CONSOLE[0]), (9, b"\x08\x80\x8a\x01"),
                  (13, CONSOLE[1])]
PTY: Fields = [(1, 12), (2, 1), (3, 0), (4, 0), (5, 0), (6, 0), (7, 0), (8, CONSOLE[0]), (12, b"\x08\x04"),
               (13, CONSOLE[1])]


def varint(value: int) -> bytes:
    return bytes([value]) if value < 0x80 else bytes([value & 0x7F | 0x80]) + varint(value >> 7)


def image(*records: Fields) -> bytes:
    out = HEAD
    for record in records:
        data = b"".join(
            varint(number << 3) + varint(value) if isinstance(value, int)
            else varint(number << 3 | 2) + varint(len(value)) + value for number, value in record)
        out += struct.pack("<I", len(data)) + data
    return out


def with_session(fields: Fields, sid: int, pgrp: int) -> Fields:
    return [(number, {6: sid, 7: pgrp}.get(number, value)) for number, value in fields]


def test_a_session_that_criu_has_missed() -> None:
    mended = tty_image.mended(image(PTY, FIELDS, PTY), {CONSOLE: (9, 300)})
    assert mended == image(PTY, with_session(FIELDS, 9, 300), PTY)


@pytest.mark.parametrize("found", [{}, {(0x8804, 1): (9, 9)}, {(1, 0xF7): (9, 9)}, {CONSOLE: (9, 0)}])
def test_what_is_none_of_it(found: dict[tuple[int, int], tuple[int, int]]) -> None:
    assert tty_image.mended(image(FIELDS, PTY), found) == image(FIELDS, PTY)


def test_a_session_that_criu_knows() -> None:
    known = image(with_session(FIELDS, 7, 8))
    assert tty_image.mended(known, {CONSOLE: (9, 9)}) == known


def test_an_image_of_another_kind() -> None:
    assert tty_image.mended(b"something else", {CONSOLE: (9, 9)}) == b"something else"


@given(st.lists(st.lists(st.tuples(st.integers(1, 15), st.integers(0, 1 << 32) | st.binary(max_size=300)), max_size=8)))
def test_everything_else_stays_as_it_is(records: list[Fields]) -> None:
    whole = image(*records)
    assert tty_image.mended(whole, {}) == whole


def test_only_where_there_is_an_image(tmp_path: Path) -> None:
    tty_image.mend(tmp_path, {CONSOLE: (9, 9)})
    (tmp_path / tty_image.IMAGE).write_bytes(image(FIELDS))
    tty_image.mend(tmp_path, {CONSOLE: (9, 9)})
    assert (tmp_path / tty_image.IMAGE).read_bytes() == image(with_session(FIELDS, 9, 9))


def test_who_leads_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no file that it has open is asked for: its server may stand still with the container."""
    pid, master = pty.fork()
    if pid == 0:
        os.write(1, b"here")
        signal.pause()
    try:
        os.read(master, 4)
        seen = Path(f"/proc/{pid}/fd/0").stat()
        monkeypatch.setattr(os, "stat", lambda *_, **__: pytest.fail("it waits for a server"))
        assert tty_image.sessions([pid]) == {(seen.st_rdev, seen.st_dev): (pid, pid)}
        assert tty_image.sessions([0, 1 << 22]) == {}, "who has gone"
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(master)
