# SPDX-License-Identifier: GPL-2.0-or-later
"""Figures and tables as people read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrator.base.figures import duration, size, table


@pytest.mark.parametrize(("count", "text"), [
    (0, "0 B"), (1, "1 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (1 << 20, "1.0 MiB"),
    (5 << 30, "5.0 GiB"), (3 << 40, "3.0 TiB"), (9 << 50, "9216.0 TiB"), (1023.4, "1023 B"), (-2048, "-2.0 KiB"),
])
def test_size(count: float, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(("seconds", "text"), [
    (0, "0.0 s"), (1.26, "1.3 s"), (12.3, "12 s"), (59.4, "59 s"), (60, "1 min 0 s"), (3599, "59 min 59 s"),
    (3600, "1 h 0 min"), (86399, "23 h 59 min"), (90000, "1 d 1 h"), (8640000, "100 d 0 h"),
])
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.floats(0, 1e18))
def test_always_short(value: float) -> None:
    assert len(size(value)) <= 15
    assert len(duration(value)) <= 25


def test_table() -> None:
    assert table(["NAME", "B"], [["x", "1"], ["longer", ""]]) == "NAME    B\nx       1\nlonger"
    assert table(["A", "B"], []) == "A  B"
