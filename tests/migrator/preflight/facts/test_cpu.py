# SPDX-License-Identifier: GPL-2.0-or-later
"""The image of a processor, and what another one lacks."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrator.preflight.facts import cpu
from migrator.preflight.facts.cpu import Cpu
from tests.migrator.made_up import CPU, image, varint


def test_cpu_image() -> None:
    assert cpu.parse_image(image(CPU)) == CPU
    packed = b"".join(varint(word) for word in CPU.capability)
    later = varint(11 << 3 | 5) + b"1234" + varint(12 << 3 | 1) + b"8" * 8  # fields of a later version
    entry = varint(6 << 3 | 2) + varint(len(packed)) + packed + later
    body = varint(1 << 3 | 2) + varint(len(entry)) + entry
    assert cpu.parse_image(cpu.MAGICS + struct.pack("<I", len(body)) + body).capability == CPU.capability


@given(st.binary() | st.tuples(st.integers(0, 150), st.binary(max_size=4)).map(
    lambda cut: image(CPU)[: cut[0]] + cut[1] + image(CPU)[cut[0] + len(cut[1]) :]))
def test_any_cpu_image(data: bytes) -> None:
    for start in (b"", cpu.MAGICS, cpu.MAGICS + struct.pack("<I", len(data))):
        try:
            cpu.parse_image(start + data)
        except ValueError:
            continue


def capabilities(**words: int) -> Cpu:
    found = [0] * 19
    for word, value in words.items():
        found[int(word[1:])] = value
    return Cpu(capability=tuple(found))


@pytest.mark.parametrize(("here", "there", "lacks"), [
    (CPU, CPU, []),
    (capabilities(w9=1 << 16 | 1 << 5), capabilities(w9=1 << 16), ["avx2"]),
    (capabilities(w9=1 << 5), capabilities(w9=1 << 16 | 1 << 5), []),
    (capabilities(w0=1 << 28), capabilities(), []),  # hyper-threading is no instruction
    (capabilities(w10=1 << 3), capabilities(), ["xsaves"]),
    (capabilities(w0=1), capabilities(), ["fpu"]),
    (capabilities(w0=1), Cpu(), ["fpu"]),
    (Cpu(xfeatures=0b111), Cpu(xfeatures=0b11), ["XSAVE state 0x4"]),
    (Cpu(xsave_size=832), Cpu(xsave_size=2696), ["the same XSAVE size (832 against 2696 bytes)"]),
    (Cpu(xsave_size_max=832), Cpu(xsave_size_max=2696), ["the same maximal XSAVE size (832 against 2696 bytes)"]),
])
def test_missing_features(here: Cpu, there: Cpu, lacks: list[str]) -> None:
    assert cpu.missing(here, there) == lacks
