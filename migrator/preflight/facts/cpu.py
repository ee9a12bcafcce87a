# SPDX-License-Identifier: GPL-2.0-or-later
"""What a program may find out about the CPU, and whether another CPU has it too.

A restored process goes on using the instructions that it chose when it started (the C library selects its memcpy once),
so the destination must have every instruction that the source has. `criu cpuinfo dump` writes what matters to
cpuinfo.img; the comparison follows `criu cpuinfo check --cpu-cap=fpu,ins`, CRIU's default (cpu_validate_features in
criu/arch/x86/cpu.c), but says which features are missing.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator

# The two magic numbers at the beginning of cpuinfo.img (criu/include/magic.h): IMG_COMMON_MAGIC and CPUINFO_MAGIC.
MAGICS = struct.pack("<II", 0x54564319, 0x61404013)

# Per 32-bit word of the capability array: bit -> its name in /proc/cpuinfo. Only what affects which instructions a
# program may execute; the words are those of the kernel's asm/cpufeatures.h as CRIU keeps them.
INSTRUCTIONS: dict[int, dict[int, str]] = {
    0: {0: "fpu", 4: "tsc", 8: "cx8", 11: "sep", 15: "cmov", 19: "clflush", 23: "mmx", 24: "fxsr",
        25: "sse", 26: "sse2"},
    1: {11: "syscall", 22: "mmxext", 27: "rdtscp", 30: "3dnowext", 31: "3dnow"},
    3: {16: "rep_good", 20: "nopl"},
    4: {0: "pni", 1: "pclmulqdq", 3: "monitor", 9: "ssse3", 13: "cx16", 19: "sse4_1", 20: "sse4_2", 22: "movbe",
        23: "popcnt", 25: "aes", 26: "xsave", 27: "osxsave", 28: "avx", 29: "f16c", 30: "rdrand"},
    6: {5: "abm", 6: "sse4a", 7: "misalignsse", 8: "3dnowprefetch", 11: "xop", 16: "fma4", 21: "tbm"},
    9: {0: "fsgsbase", 3: "bmi1", 4: "hle", 5: "avx2", 8: "bmi2", 9: "erms", 11: "rtm", 14: "mpx", 16: "avx512f",
        17: "avx512dq", 18: "rdseed", 19: "adx", 23: "clflushopt", 26: "avx512pf", 27: "avx512er", 28: "avx512cd",
        29: "sha_ni", 30: "avx512bw", 31: "avx512vl"},
    10: {0: "xsaveopt", 1: "xsavec", 2: "xgetbv1"},
    11: {1: "avx512vbmi", 6: "avx512_vbmi2", 8: "gfni", 9: "vaes", 10: "vpclmulqdq", 11: "avx512_vnni",
         12: "avx512_bitalg", 13: "tme", 14: "avx512_vpopcntdq", 22: "rdpid"},
    13: {0: "clzero"},
    18: {2: "avx512_4vnniw", 3: "avx512_4fmaps"},
}
# Floating point state that the kernel saves in a special way.
FPU = {(0, 0): "fpu", (0, 24): "fxsr", (4, 27): "osxsave", (10, 3): "xsaves"}


@dataclasses.dataclass(frozen=True)
class Cpu:
    """The one x86 entry of cpuinfo.img (images/cpuinfo.proto)."""

    vendor: int = 0  # 1 Intel, 2 AMD
    family: int = 0
    model: int = 0
    stepping: int = 0
    name: str = ""
    capability: tuple[int, ...] = ()  # 32-bit words
    xfeatures: int = 0  # the XCR0 bits: which register sets are saved
    xsave_size: int = 0  # bytes
    xsave_size_max: int = 0  # bytes


def parse_image(data: bytes) -> Cpu:
    """cpuinfo.img as written by `criu cpuinfo dump`; raises ValueError if it is of another CPU type or damaged."""
    if data[:8] != MAGICS or len(data) < 12:
        raise ValueError("cpuinfo.img does not begin with CRIU's magic number")
    (size,) = struct.unpack_from("<I", data, 8)
    try:
        entries = [value for number, value in _fields(data[12 : 12 + size]) if number == 1 and isinstance(value, bytes)]
        if len(entries) != 1:
            raise ValueError("cpuinfo.img does not describe an x86 processor")
        return _entry(entries[0])
    except (IndexError, struct.error):
        raise ValueError("cpuinfo.img is cut off") from None


def _entry(data: bytes) -> Cpu:
    numbers: dict[int, int] = {}
    words: list[int] = []
    name = ""
    for field, value in _fields(data):
        if field == 7 and isinstance(value, bytes):
            name = value.decode(errors="replace")
        elif field == 6:
            words += [value] if isinstance(value, int) else _packed(value)
        elif isinstance(value, int):
            numbers[field] = value
    return Cpu(
        vendor=numbers.get(1, 0), family=numbers.get(2, 0), model=numbers.get(3, 0), stepping=numbers.get(4, 0),
        name=name, capability=tuple(words), xfeatures=numbers.get(8, 0),
        xsave_size=numbers.get(9, 0), xsave_size_max=numbers.get(10, 0),
    )


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protocol buffer message: varints as numbers, the rest as bytes (protobuf.dev, "Encoding")."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        kind = key & 7
        if kind == 0:
            number, position = _varint(data, position)
            yield key >> 3, number
            continue
        if kind == 2:
            size, position = _varint(data, position)
        else:
            size = {1: 8, 5: 4}[kind] if kind in (1, 5) else len(data) + 1
        if position + size > len(data):
            raise IndexError
        yield key >> 3, data[position : position + size]
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number & (2**64 - 1), position
    raise IndexError


def _packed(data: bytes) -> list[int]:
    words, position = [], 0
    while position < len(data):
        word, position = _varint(data, position)
        words.append(word)
    return words


def missing(source: Cpu, destination: Cpu) -> list[str]:
    """What the destination's CPU lacks, in words; empty if a process can continue there."""
    lacks = []
    for word, bits in INSTRUCTIONS.items():
        lost = _word(source, word) & ~_word(destination, word)
        lacks += [name for bit, name in bits.items() if lost >> bit & 1]
    for (word, bit), name in FPU.items():
        if _word(source, word) >> bit & 1 > _word(destination, word) >> bit & 1 and name not in lacks:
            lacks.append(name)
    extra = source.xfeatures & ~destination.xfeatures
    if extra:
        lacks.append(f"XSAVE state {extra:#x}")
    if source.xsave_size != destination.xsave_size:
        lacks.append(f"the same XSAVE size ({source.xsave_size} against {destination.xsave_size} bytes)")
    elif source.xsave_size_max != destination.xsave_size_max:
        lacks.append(
            f"the same maximal XSAVE size ({source.xsave_size_max} against {destination.xsave_size_max} bytes)"
        )
    return lacks


def _word(cpu: Cpu, number: int) -> int:
    return cpu.capability[number] if number < len(cpu.capability) else 0
