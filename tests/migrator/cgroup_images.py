# SPDX-License-Identifier: GPL-2.0-or-later
"""CRIU's image of a container's cgroups, made up."""

from __future__ import annotations

import struct

from migrator.criu.protocol_buffers import varint

HEAD = struct.pack("<II", 0x54564319, 0x59383330)


def text(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def number(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def prop(name: str, value: str) -> bytes:
    return text(3, text(1, name.encode()) + text(2, value.encode()) + text(3, number(1, 0o644) + number(2, 100000)))


def image(*subtree: bytes) -> bytes:
    """As a dump has it: a set of cgroups that tasks are in; a controller with a cgroup and one below it."""
    below = text(1, b"own") + prop("cgroup.max.depth", "max") + b"".join(subtree) + text(4, number(1, 0o755))
    top = text(1, b"lxc.payload.c1") + text(2, below) + b"".join(subtree) + prop("cgroup.freeze", "1" * 200)
    record = (text(1, number(1, 8) + text(2, text(1, b"") + text(2, b"/cgroup.subtree_control") + number(3, 41)))
              + text(2, text(1, b"") + text(2, top) + number(3, 0)))
    return HEAD + struct.pack("<I", len(record)) + record
