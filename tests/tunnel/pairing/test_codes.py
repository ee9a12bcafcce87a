# SPDX-License-Identifier: GPL-2.0-or-later
"""Codes and the words they are made of."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.pairing.codes import WORDS_PER_CODE, Code
from tunnel.pairing.words import WORDS
from tunnel.tunnel_errors import PairingFailed


def test_the_words_are_as_they_say() -> None:
    assert len(WORDS) == len(set(WORDS)) == 512
    assert all(word.isalpha() and word.isascii() and word.islower() and 4 <= len(word) <= 9 for word in WORDS)
    assert list(WORDS) == sorted(WORDS)


def test_no_two_words_differ_by_one_letter() -> None:
    alike = [pair for pair in combinations(WORDS, 2) if _one_letter_apart(*pair)]
    assert not alike


def _one_letter_apart(one: str, two: str) -> bool:
    if len(one) == len(two):
        return sum(a != b for a, b in zip(one, two, strict=True)) <= 1
    short, long = sorted((one, two), key=len)
    return len(long) - len(short) == 1 and any(long[:i] + long[i + 1 :] == short for i in range(len(long)))


def test_codes_are_made_and_read_again() -> None:
    made = {str(Code.make("7")) for _ in range(50)}
    assert len(made) > 40
    for text in made:
        number, *words = text.split("-")
        assert number == "7"
        assert len(words) == WORDS_PER_CODE
        assert set(words) <= set(WORDS)
        assert str(Code.parse(text)) == text


@pytest.mark.parametrize("text", ["7-velvet-harbor", " 7-Velvet-HARBOR\n", "7 velvet harbor", "7- velvet -harbor",
                                  "-7-velvet-harbor-"])
def test_as_people_write_it(text: str) -> None:
    assert Code.parse(text) == Code("7", "velvet-harbor")


@pytest.mark.parametrize("text", ["", "7", "7-", "velvet-harbor", "7--", "7-vel1et", "1234567-velvet",
                                  "7-velvet/harbor", "\u0667-velvet-harbor", "7-" + "a" * 100, "7_velvet"])
def test_no_code(text: str) -> None:
    with pytest.raises(PairingFailed, match="is not a code"):
        Code.parse(text)


@given(st.text(max_size=80))
def test_any_text_is_a_code_or_is_refused(text: str) -> None:
    try:
        code = Code.parse(text)
    except PairingFailed:
        return
    assert Code.parse(str(code)) == code


def test_the_secret_is_not_in_the_representation() -> None:
    assert "velvet" not in repr(Code.parse("7-velvet-harbor"))
