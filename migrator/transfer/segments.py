# SPDX-License-Identifier: GPL-2.0-or-later
"""The segments of a stream, and the index file that holds their digests.

A stream is cut into segments of SEGMENT_MAX raw bytes (the last one may be shorter), each with its BLAKE3 digest. The
receiver keeps a stream as a plain file NAME and beside it NAME.index, to which a line is added for each segment that is
on disk:

s LENGTH DIGEST 8 and 64 hexadecimal digits

and, when the stream is complete, a last one with the total length and the digest over the segments' digests:

e LENGTH DIGEST 16 and 64 hexadecimal digits
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import NamedTuple

from blake3 import blake3

from migrator.errors.containers import InvalidName
from migrator.transfer.frames import SEGMENT_MAX
from migrator.transfer.stream import Bytes

INDEX_SUFFIX = ".index"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}", re.ASCII)
_LINE = re.compile(rb"s ([0-9a-f]{8}) ([0-9a-f]{64})\n")
_LINE_SIZE = 76  # bytes
_LAST = re.compile(rb"e ([0-9a-f]{16}) ([0-9a-f]{64})\n")
LAST_SIZE = 84  # bytes


class Segment(NamedTuple):
    length: int  # raw bytes
    digest: bytes


class End(NamedTuple):
    length: int  # raw bytes of the whole stream
    digest: bytes  # over the segments' digests


@dataclasses.dataclass(frozen=True)
class Index:
    """What an index file says; `end` is None while the stream is incomplete."""

    segments: list[Segment]
    end: End | None

    @property
    def length(self) -> int:
        return sum(segment.length for segment in self.segments)


def check_name(name: str) -> str:
    """`name` if it can be a stream's name; raises InvalidName. Names from the wire are checked here before any use."""
    if not _NAME.fullmatch(name) or name.endswith(INDEX_SUFFIX):
        raise InvalidName(
            what="The stream",
            name=ascii(name[:120]),
            reason=f"it must have 1 to 101 of those characters and not end with {INDEX_SUFFIX}",
        )
    return name


def digest_of(data: Bytes) -> bytes:
    return blake3(data).digest()


def digest_over(segments: Iterable[Segment]) -> bytes:
    """The digest of a whole stream: over its segments' digests."""
    return blake3(b"".join(segment.digest for segment in segments)).digest()


def line(segment: Segment) -> bytes:
    return b"s %08x %s\n" % (segment.length, segment.digest.hex().encode())


def last_line(end: End) -> bytes:
    return b"e %016x %s\n" % (end.length, end.digest.hex().encode())


def lines_size(count: int) -> int:
    """How many bytes of an index its first `count` segments take."""
    return count * _LINE_SIZE


def parse(data: bytes) -> Index:
    """What can be trusted of an index file: everything up to the first line that is torn or malformed."""
    segments: list[Segment] = []
    at = 0
    while found := _LINE.match(data, at):
        length = int(found[1], 16)
        if not 1 <= length <= SEGMENT_MAX or (segments and segments[-1].length != SEGMENT_MAX):
            break
        segments.append(Segment(length, bytes.fromhex(found[2].decode())))
        at = found.end()
    return Index(segments, _parse_end(data[at:], segments))


def _parse_end(data: bytes, segments: list[Segment]) -> End | None:
    if not (found := _LAST.fullmatch(data)):
        return None
    end = End(int(found[1], 16), bytes.fromhex(found[2].decode()))
    return end if end == whole(segments) else None


def parse_last(data: bytes) -> int | None:
    """The stream's length if `data` is the last line of an index."""
    found = _LAST.fullmatch(data)
    return int(found[1], 16) if found else None


def whole(segments: list[Segment]) -> End:
    return End(sum(s.length for s in segments), digest_over(segments))
