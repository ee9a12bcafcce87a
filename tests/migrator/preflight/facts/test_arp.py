# SPDX-License-Identifier: GPL-2.0-or-later
"""The question who has an address, and its answer, as bytes."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrator.preflight.facts import arp

ADDRESS = IPv4Address("10.0.3.3")
MAC = bytes.fromhex("aa0000000001")
ANSWER = bytes.fromhex("aa0000000001 aa0000000002 0806 0001080006040002 aa0000000002 0a000303 aa0000000001 00000000")


def test_the_question_is_a_probe() -> None:
    """RFC 5227, section 2.1.1: a request from no address, so that nobody learns anything of it."""
    assert arp.probe(MAC, ADDRESS).hex(" ", 2) == (
        "ffff ffff ffff aa00 0000 0001 0806 0001 0800 0604 0001 aa00 0000 0001 0000 0000 0000 0000 0000 0a00 0303")


def test_the_answer() -> None:
    assert arp.answer(ANSWER, ADDRESS) == "aa:00:00:00:00:02"
    assert arp.answer(ANSWER + bytes(18), ADDRESS) == "aa:00:00:00:00:02", "short frames are padded"


@pytest.mark.parametrize("frame", [
    b"", ANSWER[:-1], arp.probe(MAC, ADDRESS), ANSWER.replace(b"\x0a\x00\x03\x03", b"\x0a\x00\x03\x04"),
    ANSWER.replace(b"\x08\x06", b"\x08\x00"),
])
def test_what_is_no_answer(frame: bytes) -> None:
    assert arp.answer(frame, ADDRESS) == ""


@given(st.binary(max_size=80))
def test_any_frame_can_be_read(frame: bytes) -> None:
    arp.answer(frame, ADDRESS)


def test_where_nobody_can_be_asked() -> None:
    assert arp.who_has("10.0.3.3", "no-such-link", "") is None
