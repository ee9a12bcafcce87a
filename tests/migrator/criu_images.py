# SPDX-License-Identifier: GPL-2.0-or-later
"""CRIU's images, made up."""

from __future__ import annotations

import struct

from migrator.criu.protocol_buffers import bytes_field, number_field

HEADS = {name: struct.pack("<II", 0x54564319, magic) for name, magic in {
    "remap-fpath.img": 0x59133954, "files.img": 0x56303138, "ghost": 0x52583605, "mounts": 0x55563928,
    "mm": 0x57492820}.items()}


def message(*parts: tuple[int, int | bytes | str]) -> bytes:
    """A protocol buffer's message."""
    out = b""
    for number, value in parts:
        if isinstance(value, int):
            out += number_field(number, value)
        else:
            out += bytes_field(number, value.encode() if isinstance(value, str) else value)
    return out


def image(name: str, *records: bytes) -> bytes:
    return HEADS[name] + b"".join(struct.pack("<I", len(record)) + record for record in records)
