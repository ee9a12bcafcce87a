# SPDX-License-Identifier: GPL-2.0-or-later
"""Watches and UNIX sockets as the kernel describes them."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrator.preflight.facts import unix_facts
from migrator.preflight.facts.watch_facts import parse_watch


def test_watch() -> None:
    line = "inotify wd:1 ino:1a2 sdev:10000f mask:2 ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:a201deadbeef"
    assert parse_watch(line) == ("1:15", 0x1A2, 1, bytes.fromhex("a201deadbeef"))
    assert parse_watch("fanotify flags:0 event-flags:0") is None
    assert parse_watch("pos: 0") is None
    assert parse_watch("inotify sdev:zz ino:1 fhandle-type:1 f_handle:0") is None


@given(st.text())
def test_any_watch(text: str) -> None:
    parse_watch(text)
    parse_watch(f"inotify {text}")


def unix_message(inode: int, *attributes: tuple[int, bytes]) -> bytes:
    body = struct.pack("=BBBBIII", 1, 1, 1, 0, inode, 0, 0)
    for kind, value in attributes:
        body += struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)
    return struct.pack("=IHHII", 16 + len(body), 20, 0, 1, 0) + body


ANSWER = (
    unix_message(10, (0, b"/run/s\0"), (1, struct.pack("=II", 7, 40)), (3, struct.pack("=I", 12)))  # listens, 12 waits
    + unix_message(11, (2, struct.pack("=I", 12)))
    + unix_message(13, (2, struct.pack("=I", 99)))
    + unix_message(14)
)


def test_unix_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert unix_facts.parse(ANSWER) == ({11: 12, 13: 99}, {10: (12,)})
    monkeypatch.setattr(unix_facts, "_ask", lambda _: ANSWER)
    assert unix_facts.outside(1, frozenset([10, 11, 13, 14])) == {13}
    assert unix_facts.outside(1, frozenset([11])) == {11}


def test_unix_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """An abstract name is not that of a file; nor has one without a file any."""
    more = (unix_message(15, (0, b"\0abstract"), (1, struct.pack("=II", 8, 40))) + unix_message(16, (0, b"/run/t\0"))
            + unix_message(17, (0, b"a/\xff"), (1, struct.pack("=II", 2**32 - 1, 40))))
    monkeypatch.setattr(unix_facts, "_ask", lambda _: ANSWER + more)
    assert unix_facts.bound(1) == {10: ("/run/s", 7), 17: ("a/\udcff", 2**32 - 1)}


@given(st.binary() | st.tuples(st.just(ANSWER), st.integers(0, 150), st.binary(max_size=3)).map(
    lambda parts: parts[0][: parts[1]] + parts[2] + parts[0][parts[1] :]))
def test_any_unix_answer(data: bytes) -> None:
    unix_facts.parse(data)
    unix_facts.parse_bound(data)
