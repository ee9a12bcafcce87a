# SPDX-License-Identifier: GPL-2.0-or-later
"""What a transfer sends: files are read, cut into segments, compressed if that pays, and made into frames."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import zstandard

from migrator.base import log
from migrator.base.figures import size
from migrator.errors import MigratorError
from migrator.errors.data import ReadFailed
from migrator.transfer import segments
from migrator.transfer.frames import DIGEST_SIZE, SEGMENT_MAX, Kind
from migrator.transfer.receiver import COMPRESSED, FILE_END, SEGMENT_HEAD
from migrator.transfer.segments import End, Segment
from migrator.transfer.stream import Bytes

_PAYS = 0.9  # a compressed segment must be smaller than this fraction of the raw one
_GIVE_UP_AFTER = 3  # segments in a row for which compressing did not pay
_TEST_EVERY = 16  # segments, from then on


class Readable(Protocol):
    def readinto(self, buffer: memoryview, /) -> int | None:
        """Fill some of `buffer` and return how much; 0 at the end. A MigratorError raised here aborts the transfer."""


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """A file to send: its name on the destination, and an open reader, or a path that is opened when its turn comes.

    `size` in bytes, if known: the destination then checks its free space first, and the file having a different size is
    an error.
    """

    name: str
    reader: Readable | Path
    size: int | None = None


@dataclasses.dataclass(frozen=True)
class Outgoing:
    """A frame to be sent, and the number of raw bytes that it represents."""

    kind: Kind
    body: tuple[Bytes, ...] = ()
    flags: int = 0
    raw_bytes: int = 0

    @property
    def is_acknowledged(self) -> bool:
        return self.kind in (Kind.SEGMENT, Kind.FILE_END)

    @property
    def wire_bytes(self) -> int:
        return sum(len(part) for part in self.body)


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A segment that the destination already has."""

    raw_bytes: int


class Source:
    """Makes frames of files.

    `held` is what the destination has of each file: its segments' digests, concatenated. `compress` says, for each
    segment, whether there is time for it now.
    """

    def __init__(self, files: list[SourceFile], held: list[bytearray], compress: Callable[[], bool]) -> None:
        self.ends: dict[str, End] = {}  # of the files that have been read to their end
        self._files = files
        self._held = held
        self._compress = compress
        self._compressor = _Compressor()
        self._spare: collections.deque[bytearray] = collections.deque()  # new memory costs a page fault for each page

    def recycle(self, frame: Outgoing) -> None:
        """Take back the memory of a frame that has been sent; the frame must not be used any more."""
        if frame.kind is Kind.SEGMENT and not frame.flags:
            self._take_back(frame.body[1])

    def _take_back(self, data: Bytes) -> None:
        buffer = data.obj if isinstance(data, memoryview) else data
        if isinstance(buffer, bytearray) and len(buffer) == SEGMENT_MAX:
            self._spare.append(buffer)

    def frames(self) -> Iterator[Outgoing | Skipped]:
        """Everything to be sent, in order. Raises ReadFailed, and what a reader raises."""
        for number, file in enumerate(self._files):
            with _opened(file) as reader:
                yield from self._file(number, file, reader)
        yield Outgoing(Kind.END)

    def _file(self, number: int, file: SourceFile, reader: Readable) -> Iterator[Outgoing | Skipped]:
        held = self._held[number]
        count = len(held) // DIGEST_SIZE
        keep: int | None = None  # how many of its segments the destination keeps; None while all were the same
        seen: list[Segment] = []
        for data in _pieces(file, reader, self._spare):
            segment = Segment(len(data), segments.digest_of(data))
            if keep is None and held[len(seen) * DIGEST_SIZE : (len(seen) + 1) * DIGEST_SIZE] == segment.digest:
                self._take_back(data)
                yield Skipped(segment.length)
            else:
                if keep is None:
                    keep = len(seen)
                    _tell_differs(file.name, seen, count)
                    yield _begin(number, keep)
                yield self._segment(segment, data)
            seen.append(segment)
        if keep is None:
            _tell_differs(file.name, seen, count)
            yield _begin(number, len(seen))
        end = segments.whole(seen)
        if file.size is not None and end.length != file.size:
            more = " or more" if end.length > file.size else ""
            raise ReadFailed(file=file.name, reason=f"it has {end.length} bytes{more} instead of {file.size}")
        yield Outgoing(Kind.FILE_END, (FILE_END.pack(*end),))
        self.ends[file.name] = end

    def _segment(self, segment: Segment, data: memoryview) -> Outgoing:
        head = SEGMENT_HEAD.pack(segment.length, segment.digest)
        packed = self._compressor.try_on(data) if self._compress() else None
        if packed is None:
            return Outgoing(Kind.SEGMENT, (head, data), 0, segment.length)
        self._take_back(data)
        return Outgoing(Kind.SEGMENT, (head, packed), COMPRESSED, segment.length)


def _tell_differs(name: str, same: list[Segment], held: int) -> None:
    """Log it if the destination has `held` segments of a file and only those in `same` match what is sent now."""
    if held > len(same) and log.level >= log.Level.NORMAL:
        kept = sum(segment.length for segment in same)
        log.say("sent-anew", f"What the destination has of {name} differs from what is being sent: everything after "
                             f"the first {size(kept)} is "
                             "sent again.", file=name, kept_bytes=kept, dropped_segments=held - len(same))


def _begin(number: int, keep: int) -> Outgoing:
    return Outgoing(Kind.FILE, (b'{"file":%d,"keep":%d}' % (number, keep),))


class _Compressor:
    """zstd, level 1, for as long as it pays."""

    def __init__(self) -> None:
        self._zstd = zstandard.ZstdCompressor(level=1)
        self._in_vain = 0  # segments in a row that did not get smaller

    def try_on(self, data: memoryview) -> bytes | None:
        """The compressed data, or None if that does not pay or is not worth trying."""
        if self._in_vain >= _GIVE_UP_AFTER and (self._in_vain - _GIVE_UP_AFTER + 1) % _TEST_EVERY:
            self._in_vain += 1
            return None
        packed = self._zstd.compress(data)
        if len(packed) < len(data) * _PAYS:
            self._in_vain = 0
            return packed
        self._in_vain += 1
        return None


@contextlib.contextmanager
def _opened(file: SourceFile) -> Iterator[Readable]:
    if not isinstance(file.reader, Path):
        yield file.reader
        return
    try:
        opened = file.reader.open("rb", buffering=0)
    except OSError as error:
        raise ReadFailed(file=file.reader, reason=error.strerror or error) from error
    with opened:
        yield opened


def _pieces(file: SourceFile, reader: Readable, spare: collections.deque[bytearray]) -> Iterator[memoryview]:
    """A file in pieces of SEGMENT_MAX, the last one shorter; each in memory of its own, from `spare` if possible."""
    # One byte more than a known size shows whether that is right.
    size = SEGMENT_MAX if file.size is None else min(SEGMENT_MAX, file.size + 1)
    while True:
        buffer = memoryview(spare.pop() if spare and size == SEGMENT_MAX else bytearray(size))
        piece = buffer[: _fill(reader, buffer, file.name)]
        if piece:
            yield piece
        if len(piece) < SEGMENT_MAX:
            return


def _fill(reader: Readable, buffer: memoryview, name: str) -> int:
    """Read until the buffer is full or the file ends; returns how many bytes."""
    done = 0
    while done < len(buffer):
        try:
            count = reader.readinto(buffer[done:])
        except MigratorError:
            raise
        except (OSError, ValueError) as error:
            raise ReadFailed(file=name, reason=error) from error
        if not count:
            break
        done += count
    return done
