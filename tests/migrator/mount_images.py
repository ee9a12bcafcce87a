# SPDX-License-Identifier: GPL-2.0-or-later
"""Entries of CRIU's image of a container's mounts, made up."""

from __future__ import annotations

import struct

from migrator.criu.protocol_buffers import varint

HEAD = struct.pack("<II", 0x54564319, 0x55563928)


def entry(type_: int, target: str, source: str = "none", key: str = "", flags: int = 0, name: str = "", root: str = "",
          options: str = "", **more: int) -> bytes:
    """A mnt_entry as in CRIU's images/mnt.proto."""
    record = bytearray()
    for number, value in ((1, type_), (3, more.get("device", 0)), (5, flags), (13, more.get("external", 0)),
                          (16, more.get("deleted", 0))):
        record += varint(number << 3) + varint(value)
    for number, text in ((6, root), (7, target), (8, source), (9, options), (14, name), (18, key)):
        if text or number < 10:  # which are required
            record += varint(number << 3 | 2) + varint(len(text.encode())) + text.encode()
    return struct.pack("<I", len(record)) + bytes(record)
