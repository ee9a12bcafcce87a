# SPDX-License-Identifier: GPL-2.0-or-later
"""Read and write the wire format of protocol buffers (protobuf.dev, Encoding), as far as CRIU's images use it.

Written by hand instead of using CRIU's own pycriu, for the reasons given in docs/HACKING.md.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

_BYTES = 2  # the type of a field that is a string or a message of its own
_VARINT_MAX = 10  # bytes of a number
_HEAD = 8  # bytes before the first message of an image: two magic numbers


def fields(record: bytes) -> Iterator[tuple[int, int | None, bytes]]:
    """The fields of a message: the number of the field, its value if that is a number (else None), and all its bytes.

    Raises ValueError, and IndexError if the message is truncated.
    """
    position = 0
    while position < len(record):
        begin = position
        key, position = _number(record, position)
        if key & 7 not in (0, 2):  # numbers of a fixed size, which do not occur in the images read here
            raise ValueError("a field is of an unknown kind")
        value, position = _number(record, position)
        is_number = key & 7 == 0
        if not is_number:  # it is a length, and that many bytes follow
            position += value
        yield key >> 3, value if is_number else None, record[begin:position]


def content(raw: bytes) -> bytes:
    """The content of a length-delimited field, after its key and its length."""
    _key, position = _number(raw, 0)
    _length, position = _number(raw, position)
    return raw[position:]


def _number(data: bytes, position: int) -> tuple[int, int]:
    """The number at a position, and the position after it; raises ValueError, and IndexError at the end."""
    value = 0
    for shift in range(0, 7 * _VARINT_MAX, 7):
        byte = data[position]
        position, value = position + 1, value | (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number is longer than a protocol buffer allows")


def varint(value: int) -> bytes:
    """A number as the format encodes it, 7 bits to a byte; it must not be negative."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def number_field(number: int, value: int) -> bytes:
    """A field that is a number."""
    return varint(number << 3) + varint(value)


def bytes_field(number: int, value: bytes) -> bytes:
    """A field that is a string, or a message of its own."""
    return varint(number << 3 | _BYTES) + varint(len(value)) + value


def replaced(record: bytes, number: int, value: int) -> bytes:
    """A message with another number in one field, if it has that field; every other byte stays as it was."""
    return b"".join(number_field(number, value) if found == number else raw for found, _, raw in fields(record))


def rewritten(image: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """An image with `change` applied to each message; raises what `change` does, or struct.error."""
    out = bytearray(image[:_HEAD])
    position = _HEAD
    while position < len(image):
        (size,) = struct.unpack_from("<I", image, position)
        out += framed(change(image[position + 4 : position + 4 + size]))
        position += 4 + size
    return bytes(out)


def framed(record: bytes) -> bytes:
    """A message as it is stored in an image: after its length."""
    return struct.pack("<I", len(record)) + record
