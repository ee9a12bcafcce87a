"""The sending end of a transfer: files become frames.

Three threads, so that reading, processor and network work at once: one reads, hashes and compresses segments; one
sends them; one reads what the receiver answers. The caller's thread only waits, so that Ctrl-C finds it at rest and
never in the middle of a frame.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import zstandard

from migrator import segments
from migrator.errors import ConnectionLost, MigratorError, ProtocolError, ReadFailed
from migrator.protocol import DIGEST_SIZE, SEGMENT_MAX, Connection, Kind
from migrator.receiver import ACK, COMPRESSED, FILE_END, SEGMENT_HEAD
from migrator.segments import Segment
from migrator.stream import Bytes

WINDOW = 64 * 1024 * 1024  # raw bytes that may be on their way without having been acknowledged
AHEAD = 4  # segments that are ready before they can be sent
ABORT_LIMIT = 10.0  # seconds for the other side to let go of a transfer that was interrupted here

_PAYS = 0.9  # a compressed segment must be smaller than this part of the raw one
_GIVE_UP_AFTER = 3  # segments in a row for which it did not pay
_TEST_EVERY = 16  # segments, from then on


class Readable(Protocol):
    def readinto(self, buffer: memoryview, /) -> int | None:
        """Fill some of `buffer` and return how much; 0 at the end. A MigratorError from here aborts the transfer."""


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """A file to send: the name that it has there, and an open reader, or a path that is opened when its turn comes.

    `size` in bytes, where it is known: the destination then checks its space first, and it is an error for the file to
    have another size.
    """

    name: str
    reader: Readable | Path
    size: int | None = None


@dataclasses.dataclass(frozen=True)
class TransferResult:
    raw_bytes: int  # of all files
    wire_bytes: int  # bodies of the frames that carried them
    resumed_bytes: int  # raw bytes that were there already and not sent again
    seconds: float
    digest: dict[str, str]  # name -> digest over the file's segments' digests
    reply: dict[str, Any]  # what the destination answered in the end


def send_files(
    connection: Connection,
    op_fields: Mapping[str, Any],
    files: Iterable[SourceFile],
    *,
    progress: Callable[[int], None] | None = None,
    bytes_per_second: int | None = None,
) -> TransferResult:
    """Send files to the destination's "transfer" handler, which gets `op_fields` and the files' names and sizes.

    Segments that are there already are read and compared, but not sent. `progress` is called in this thread with the
    raw bytes that have been acknowledged so far. `bytes_per_second` limits what goes over the network.

    Raises what the reader or the destination raised; the connection can be used for further calls then. After
    ConnectionLost and ProtocolError it cannot, but what has arrived stays there for the next attempt.
    """
    begun = time.monotonic()
    listed = list(files)
    request = connection.request(
        "transfer", {**op_fields, "files": [{"name": file.name, "size": file.size} for file in listed]}
    )
    held = _read_held(connection, connection.answer(request), len(listed))
    sender = _Sender(connection, request, listed, held, bytes_per_second)
    reply = sender.run(progress)
    return TransferResult(
        raw_bytes=sender.raw_bytes,
        wire_bytes=sender.wire_bytes,
        resumed_bytes=sender.resumed_bytes,
        seconds=time.monotonic() - begun,
        digest=sender.digests,
        reply=reply,
    )


def _read_held(connection: Connection, reply: dict[str, Any], files: int) -> list[list[bytes]]:
    """The digests of the segments that the destination has of each file."""
    counts = reply.get("held")
    held: list[list[bytes]] = [[] for _ in range(files)]
    if not isinstance(counts, dict):
        raise ProtocolError(reason="its reply to a transfer lacks what it holds")
    missing = {int(key): value for key, value in counts.items() if key.isdecimal() and isinstance(value, int)}
    while any(len(held[number]) < count for number, count in missing.items() if number < files):
        frame = connection.receive()
        if frame.kind is not Kind.HELD or len(frame.body) <= 4 or len(frame.body) % DIGEST_SIZE != 4:
            raise ProtocolError(reason=f"it sent {frame.kind.name} where the digests of what it holds were due")
        (number,) = struct.unpack_from("!I", frame.body)
        digests = bytes(frame.body[4:])
        if number not in missing or number >= files:
            raise ProtocolError(reason="it holds segments of a file that is not being sent")
        held[number] += [digests[at : at + DIGEST_SIZE] for at in range(0, len(digests), DIGEST_SIZE)]
        if len(held[number]) > missing[number]:
            raise ProtocolError(reason="it holds more segments than it said")
    return held


@dataclasses.dataclass(frozen=True)
class _Ready:
    """A frame that is ready to be sent, and how many raw bytes of which file it stands for."""

    kind: Kind
    body: tuple[Bytes, ...]
    flags: int = 0
    raw_bytes: int = 0

    @property
    def is_acknowledged(self) -> bool:
        return self.kind in (Kind.SEGMENT, Kind.FILE_END)


class _Sender:
    """One transfer's threads and what they share; `_changed` guards all that more than one of them touches."""

    def __init__(self, connection: Connection, request: int, files: list[SourceFile], held: list[list[bytes]],
                 bytes_per_second: int | None) -> None:
        self.raw_bytes = 0
        self.wire_bytes = 0
        self.resumed_bytes = 0
        self.digests: dict[str, str] = {}
        self._connection = connection
        self._request = request
        self._files = files
        self._held = held
        self._pace = _Pace(bytes_per_second)
        self._compressor = _Compressor()
        self._changed = threading.Condition()
        self._ready: collections.deque[_Ready] = collections.deque()
        self._sending = False  # a frame is being written: the network is what we wait for
        self._unacknowledged: collections.deque[int] = collections.deque()  # raw bytes of each frame
        self._in_flight = 0  # their sum
        self._done_bytes = 0  # acknowledged, or there already
        self._read_error: BaseException | None = None  # of the reader
        self._stop = False  # stop sending: something failed, here or there
        self._reply: dict[str, Any] | None = None
        self._answer_error: BaseException | None = None  # from the destination or the connection
        self._answered = False

    def run(self, progress: Callable[[int], None] | None) -> dict[str, Any]:
        """Do it all; the destination's last answer."""
        threads = [
            threading.Thread(target=target, name=f"migrator-{name}", daemon=True)
            for name, target in (("read", self._read), ("send", self._send), ("answers", self._listen))
        ]
        for thread in threads:
            thread.start()
        try:
            self._wait(progress)
        except BaseException:
            # Ctrl-C, or a progress function that failed: leave the connection between two frames if we can.
            with self._changed:
                self._stop = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._answered, ABORT_LIMIT)
            raise
        if self._read_error and not isinstance(self._answer_error, (ConnectionLost, ProtocolError)):
            raise self._read_error
        if self._answer_error:
            raise self._answer_error
        threads[0].join()
        return self._reply or {}

    def _wait(self, progress: Callable[[int], None] | None) -> None:
        """Until the destination has answered for the whole."""
        shown = -1
        while True:
            with self._changed:
                answered = self._changed.wait_for(lambda: self._answered, 0.1)
                done = self._done_bytes
            if progress and done != shown:
                progress(done)
                shown = done
            if answered:
                return

    # --- Reading ---

    def _read(self) -> None:
        try:
            for number, file in enumerate(self._files):
                with _opened(file) as reader:
                    self._read_file(number, file, reader)
            self._put(_Ready(Kind.END, ()))
        except _Stopped:
            pass
        except BaseException as error:
            with self._changed:
                self._read_error = error
                self._stop = True
                self._changed.notify_all()

    def _read_file(self, number: int, file: SourceFile, reader: Readable) -> None:
        held = self._held[number]
        keep: int | None = None  # how many of its segments the destination keeps; None while all were the same
        seen: list[Segment] = []
        while True:
            buffer = memoryview(bytearray(SEGMENT_MAX if file.size is None else min(SEGMENT_MAX, file.size + 1)))
            data = buffer[: _fill(reader, buffer, file.name)]
            if not data:
                break
            segment = Segment(len(data), segments.digest_of(data))
            if keep is None and len(seen) < len(held) and held[len(seen)] == segment.digest:
                self._skip(len(data))
            else:
                if keep is None:
                    keep = len(seen)
                    self._put(self._file_frame(number, keep))
                self._put(self._segment_frame(segment, data))
            seen.append(segment)
            if len(data) < SEGMENT_MAX:
                break
        if keep is None:
            self._put(self._file_frame(number, len(seen)))
        end = segments.whole(seen)
        if file.size is not None and end.length != file.size:
            raise ReadFailed(file=file.name, reason=f"it has {end.length} bytes or more instead of {file.size}")
        self._put(_Ready(Kind.FILE_END, (FILE_END.pack(*end),)))
        self.digests[file.name] = end.digest.hex()
        self.raw_bytes += end.length

    def _file_frame(self, number: int, keep: int) -> _Ready:
        return _Ready(Kind.FILE, (b'{"file":%d,"keep":%d}' % (number, keep),))

    def _segment_frame(self, segment: Segment, data: memoryview) -> _Ready:
        head = SEGMENT_HEAD.pack(segment.length, segment.digest)
        with self._changed:
            network_is_busy = self._sending or bool(self._ready)
        packed = self._compressor.try_on(data) if network_is_busy else None
        body: Bytes = data if packed is None else packed
        return _Ready(Kind.SEGMENT, (head, body), COMPRESSED if packed else 0, segment.length)

    def _skip(self, length: int) -> None:
        with self._changed:
            if self._stop:
                raise _Stopped
            self.resumed_bytes += length
            self._done_bytes += length

    def _put(self, frame: _Ready) -> None:
        with self._changed:
            large = frame.raw_bytes >= SEGMENT_MAX // 8
            self._changed.wait_for(lambda: self._stop or len(self._ready) < (AHEAD if large else AHEAD * 8))
            if self._stop:
                raise _Stopped
            self._ready.append(frame)
            self._changed.notify_all()

    # --- Sending ---

    def _send(self) -> None:
        try:
            while True:
                frame = self._next()
                if frame is None:
                    reason = str(self._read_error or "it was stopped")[:4000]
                    self._connection.send_json(Kind.ABORT, {"reason": reason})
                    return
                self._connection.send(frame.kind, *frame.body, flags=frame.flags)
                self.wire_bytes += sum(len(part) for part in frame.body)
                with self._changed:
                    self._sending = False
                    self._changed.wait_for(lambda: self._stop, self._pace.pause_after(frame))
                if frame.kind is Kind.END:
                    return
        except BaseException as error:
            with self._changed:  # what the destination said before the connection broke tells more
                self._changed.wait_for(lambda: self._answered, 1.0)
            self._finish(error)

    def _next(self) -> _Ready | None:
        """The next frame, once it fits into the window; None to stop."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._stop
                or (self._ready and (not self._in_flight or self._in_flight + self._ready[0].raw_bytes <= WINDOW))
            )
            if self._stop:
                return None
            frame = self._ready.popleft()
            self._sending = True
            if frame.is_acknowledged:
                self._unacknowledged.append(frame.raw_bytes)
                self._in_flight += frame.raw_bytes
            self._changed.notify_all()
            return frame

    # --- Listening ---

    def _listen(self) -> None:
        acknowledged = 0
        try:
            while True:
                frame = self._connection.receive()
                if frame.kind is Kind.ACK and len(frame.body) == ACK.size:
                    (total,) = ACK.unpack(frame.body)
                    self._take(total - acknowledged)
                    acknowledged = total
                elif frame.kind is Kind.STOP:
                    with self._changed:
                        self._stop = True
                        self._changed.notify_all()
                else:
                    self._reply = self._connection.answer_in(frame, self._request)
                    self._finish(None)
                    return
        except BaseException as error:
            self._finish(error)

    def _take(self, count: int) -> None:
        with self._changed:
            if not 0 <= count <= len(self._unacknowledged):
                raise ProtocolError(reason="it acknowledged what was not sent")
            for _ in range(count):
                length = self._unacknowledged.popleft()
                self._in_flight -= length
                self._done_bytes += length
            self._changed.notify_all()

    def _finish(self, error: BaseException | None) -> None:
        with self._changed:
            if not self._answered:
                self._answered = True
                self._stop = self._stop or error is not None
                self._answer_error = error
            self._changed.notify_all()


class _Stopped(Exception):
    """Ends the reading thread."""


class _Pace:
    """Holds a sender to a number of bytes a second, on average over a segment."""

    def __init__(self, bytes_per_second: int | None) -> None:
        self._rate = bytes_per_second
        self._due = time.monotonic()  # when all that was sent so far should have taken until

    def pause_after(self, frame: _Ready) -> float:
        """Seconds to wait after a frame has been sent."""
        if not self._rate:
            return 0.0
        now = time.monotonic()
        self._due = max(now - 0.1, self._due) + sum(len(part) for part in frame.body) / self._rate
        return max(0.0, self._due - now)


class _Compressor:
    """zstd, level 1, while it pays."""

    def __init__(self) -> None:
        self._zstd = zstandard.ZstdCompressor(level=1)
        self._in_vain = 0  # segments in a row that would not get smaller

    def try_on(self, data: memoryview) -> bytes | None:
        """The data compressed, or None if that does not pay or is not worth a try."""
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


def _fill(reader: Readable, buffer: memoryview, name: str) -> int:
    """Read until the buffer is full or the file ends; how much that was."""
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
