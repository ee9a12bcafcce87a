# SPDX-License-Identifier: GPL-2.0-or-later
"""CRIU's images, read the way that CRIU reads them, or refused.

Something that could mean one thing here and another to CRIU would escape our checks. Each image is a head of two
numbers followed by protocol buffer messages, each preceded by its length in 4 bytes (https://criu.org/Images).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from migrator.base import bounded_read
from migrator.criu.protocol_buffers import content, fields

FILES = "files.img"
FILES_MAGIC = 0x56303138  # criu/include/magic.h
FILES_LIMIT = 128 << 20  # bytes; a file takes a few hundred
MOUNTS = "mountpoints-*.img"  # one for each mount namespace
MOUNTS_MAGIC = 0x55563928  # MNTS_MAGIC, ibid.
MOUNTS_LIMIT = 16 << 20  # bytes of one; a mount takes a few hundred
REMAPS = "remap-fpath.img"  # what is open though deleted, or replaced by an upgrade
REMAPS_MAGIC = 0x59133954  # REMAP_FPATH_MAGIC, ibid.
_COMMON = 0x54564319  # IMG_COMMON_MAGIC, ibid.


def records(path: Path, magic: int, limit: int) -> Iterator[bytes]:
    """The messages of an image; raises OSError, and ValueError if it has more than `limit` bytes or is damaged."""
    return split(bounded_read.read(path, limit), path.name, magic)


def split(image: bytes, name: str, magic: int) -> Iterator[bytes]:
    """The messages of an image; raises ValueError."""
    head = struct.pack("<II", _COMMON, magic)
    if not image.startswith(head):
        raise ValueError(f"{name} is not a CRIU image")
    position = len(head)
    while position < len(image):
        begin = position + 4
        position = begin + int.from_bytes(image[position:begin], "little")
        if position > len(image):
            raise ValueError(f"{name} is damaged")
        yield image[begin:position]


def rewrite_mounts(images: Path, change: Callable[[dict[str, bytes]], dict[str, bytes]]) -> None:
    """Pass the mount images of a dump, by file name, through `change`, and write those that it returns changed.

    Raises OSError, and ValueError if an image has more than MOUNTS_LIMIT bytes or, from `change`, if one is damaged.
    """
    texts = {path.name: bounded_read.read(path, MOUNTS_LIMIT) for path in sorted(images.glob(MOUNTS))}
    for name, text in change(texts).items():
        if text != texts[name]:
            (images / name).write_bytes(text)


def once(record: bytes, wanted: Collection[int]) -> dict[int, int | bytes]:
    """These fields of a message; raises ValueError if one of them occurs twice."""
    found: dict[int, int | bytes] = {}
    try:
        for number_, value, raw in fields(record):
            if number_ in wanted:
                if number_ in found:
                    raise ValueError("a field is there twice")
                found[number_] = content(raw) if value is None else value
    except IndexError as error:
        raise ValueError("a record of an image is damaged") from error
    return found


def number(value: int | bytes | None) -> int:
    """A field that must be present and be a number; raises ValueError."""
    if isinstance(value, int):
        return value & 0xFFFFFFFF  # as protobuf-c has it
    raise ValueError("a number is missing in an image")


def signed(value: int | bytes | None) -> int:
    """As `number` for a sint32; one that is absent is -1, CRIU's default for mounts."""
    zigzag = number(1 if value is None else value)
    return zigzag >> 1 ^ -(zigzag & 1)


def string(value: int | bytes | None) -> bytes:
    """A field that must be present and be a string; raises ValueError."""
    if isinstance(value, bytes):
        return value
    raise ValueError("a string is missing in an image")
