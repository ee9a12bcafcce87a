# SPDX-License-Identifier: GPL-2.0-or-later
"""The sending end of a transfer.

It uses three threads, so that reading, CPU and network work at the same time: one makes frames
(`migrator.transfer.stream_reader`), one sends them, and one reads the destination's answers. The caller's thread only
waits, so that Ctrl-C finds it idle and never in the middle of a frame.
"""

from __future__ import annotations

import collections
import dataclasses
import struct
import threading
import time
from collections.abc import Callable, Iterable, Sequence

import msgspec

from migrator.errors.connection import ConnectionLost, ProtocolError
from migrator.record.detail import Told
from migrator.transfer.frames import DIGEST_SIZE, SEGMENT_MAX, Kind, header
from migrator.transfer.messages import File, Held, Received, Transfer
from migrator.transfer.receiver import ACK
from migrator.transfer.rpc import Connection
from migrator.transfer.stream import Bytes
from migrator.transfer.stream_reader import Outgoing, Skipped, Source, SourceFile
from migrator.transfer.wire_codec import decoded

__all__ = ["SourceFile", "TransferResult", "send_files"]

WINDOW = 64 * 1024 * 1024  # raw bytes that may be in flight unacknowledged
AHEAD = 4  # segments that are prepared before they can be sent
AHEAD_SMALL = 64  # the same for smaller frames
HELD_KEPT = 1 << 22  # segments of a file of unknown size whose digests are kept: for 16 TiB, in 128 MiB
BATCH = 16 * 1024  # bytes of small frames sent with one call
ABORT_LIMIT = 3.0  # seconds for the other side to let go of a transfer that was interrupted here
TICK = 0.1  # seconds between two calls of `progress`


@dataclasses.dataclass(frozen=True)
class TransferResult:
    raw_bytes: int  # of all files
    wire_bytes: int  # bodies of the frames that carried them
    resumed_bytes: int  # raw bytes that were there already and were not sent again
    seconds: float
    digest: dict[str, str]  # name -> digest over the file's segments' digests

    def tell(self, told: Told) -> None:
        """For the journal."""
        told.bytes, told.wire, told.resumed = self.raw_bytes, self.wire_bytes, self.resumed_bytes
        told.seconds = round(self.seconds, 3)


def send_files(
    connection: Connection,
    asks: Transfer,
    files: Iterable[SourceFile],
    *,
    progress: Callable[[int, int], None] | None = None,
    bytes_per_second: int | None = None,
) -> TransferResult:
    """Send files to the destination's "transfer" handler, which gets the fields of `asks` and files' names and sizes.

    Segments that are there already are read and compared, but not sent. `progress` is called in this thread with the
    raw bytes that are on the destination's disk so far, and how many of them were there before, several times a second
    even if nothing moves; an exception from it aborts the transfer. `bytes_per_second` limits what goes over the
    network.

    Raises what the reader, `progress` or the destination raised. The connection remains usable then, also after Ctrl-C,
    unless the destination does not let go of the transfer within ABORT_LIMIT: then it is closed. After ConnectionLost
    and ProtocolError it is unusable, but what has arrived stays there for the next attempt.
    """
    begun = time.monotonic()
    sender = _Sender(connection, asks, list(files), bytes_per_second)
    sender.run(progress)
    ends = sender.source.ends
    return TransferResult(
        raw_bytes=sum(end.length for end in ends.values()),
        wire_bytes=sender.wire_bytes,
        resumed_bytes=sender.resumed_bytes,
        seconds=time.monotonic() - begun,
        digest={name: end.digest.hex() for name, end in ends.items()},
    )


class _Sender:
    """One transfer's threads and what they share; `_lock` guards everything that more than one of them touches."""

    def __init__(self, connection: Connection, asks: Transfer, files: list[SourceFile],
                 bytes_per_second: int | None) -> None:
        self.source: Source
        self.wire_bytes = 0
        self.resumed_bytes = 0
        self._connection = connection
        self._asks = asks
        self._files = files
        self._pace = _Pace(bytes_per_second)
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)  # for the reading thread: _ready has become shorter
        # For the sending thread: a frame is ready and fits into the window.
        self._work = threading.Condition(self._lock)
        self._end = threading.Condition(self._lock)  # for the caller's thread: it is over
        self._ready: collections.deque[Outgoing] = collections.deque()
        self._sending = False  # a frame is being written: the network is the bottleneck
        self._unacknowledged: collections.deque[int] = collections.deque()  # raw bytes of each frame
        self._in_flight = 0  # their sum
        self._done_bytes = 0  # acknowledged, or there already
        self._stop = False  # send no more: something failed, here or there
        self._read_error: BaseException | None = None  # of the reading thread
        self._answered = False
        self._answer_error: BaseException | None = None  # from the destination or the connection

    def run(self, progress: Callable[[int, int], None] | None) -> None:
        """Do it all, until the destination has confirmed that it has everything."""
        threading.Thread(target=self._listen, name="migrator-answers", daemon=True).start()
        try:
            self._wait(progress)
        except BaseException:
            # Ctrl-C, or a progress function that failed: leave the connection between two frames if possible.
            with self._lock:
                self._stop_sending()
                self._end.wait_for(lambda: self._answered, ABORT_LIMIT)
            if not self._answered:
                self._connection.close()
            raise
        if self._read_error and not isinstance(self._answer_error, ConnectionLost | ProtocolError):
            raise self._read_error
        if self._answer_error:
            raise self._answer_error

    def _wait(self, progress: Callable[[int, int], None] | None) -> None:
        """Wait until the destination has confirmed all of it."""
        answered = False
        while not answered:
            with self._lock:
                answered = self._end.wait_for(lambda: self._answered, TICK)
                done, resumed = self._done_bytes, self.resumed_bytes
            if progress and not self._answer_error:
                progress(done, resumed)

    def _stop_sending(self) -> None:
        """Called with the lock held."""
        self._stop = True
        self._room.notify_all()
        self._work.notify_all()

    def _finish(self, error: BaseException | None) -> None:
        with self._lock:
            if not self._answered:
                self._answered = True
                self._answer_error = error
            if error:
                self._stop_sending()
            self._end.notify_all()

    # --- What the destination answers ---

    def _listen(self) -> None:
        try:
            request = self._begin()
            acknowledged = 0
            while True:
                frame = self._connection.receive()
                if frame.kind is Kind.ACK and len(frame.body) == ACK.size:
                    (total,) = ACK.unpack(frame.body)
                    self._take(total - acknowledged)
                    acknowledged = total
                elif frame.kind is Kind.STOP:
                    with self._lock:
                        self._stop_sending()
                else:
                    decoded(Received, self._connection.answer_in(frame, request))
                    self._finish(None)
                    return
        except BaseException as error:
            self._finish(error)

    def _begin(self) -> int:
        """Request the transfer and start it; returns the request's id."""
        listed = tuple(File(name=file.name, size=file.size) for file in self._files)
        request = self._connection.send_request(msgspec.structs.replace(self._asks, files=listed))
        first = decoded(Held, self._connection.answer(request))
        held = _read_held(self._connection, first, self._files)
        self.source = Source(self._files, held, self._is_network_busy)
        for target, name in ((self._read, "read"), (self._send, "send")):
            threading.Thread(target=target, name=f"migrator-{name}", daemon=True).start()
        return request

    def _take(self, count: int) -> None:
        """`count` more frames are on the destination's disk."""
        with self._lock:
            if not 0 <= count <= len(self._unacknowledged):
                raise ProtocolError(reason="it acknowledged what was not sent")
            for _ in range(count):
                length = self._unacknowledged.popleft()
                self._in_flight -= length
                self._done_bytes += length
                self._connection.acknowledged += length
            self._work.notify()

    # --- Reading ---

    def _is_network_busy(self) -> bool:
        """Whether a segment would have to wait anyway: then compressing it costs no time."""
        with self._lock:
            return self._sending or bool(self._ready)

    def _read(self) -> None:
        try:
            for item in self.source.frames():
                with self._lock:
                    most = AHEAD if item.raw_bytes >= SEGMENT_MAX // 8 else AHEAD_SMALL
                    self._room.wait_for(lambda: self._stop or len(self._ready) < most)  # noqa: B023
                    if self._stop:
                        return
                    if isinstance(item, Skipped):
                        self.resumed_bytes += item.raw_bytes
                        self._done_bytes += item.raw_bytes
                    else:
                        self._ready.append(item)
                        self._work.notify()
        except BaseException as error:
            with self._lock:
                self._read_error = error
                self._stop_sending()

    # --- Sending ---

    def _send(self) -> None:
        try:
            while batch := self._next():
                packed: list[Bytes] = []
                for frame in batch:
                    packed += (header(frame.kind, frame.flags, frame.body), *frame.body)
                self._connection.send_packed(packed)
                packed.clear()
                for frame in batch:
                    self.source.recycle(frame)
                size = sum(frame.wire_bytes for frame in batch)
                self.wire_bytes += size
                if batch[-1].kind is Kind.END:
                    return
                with self._lock:
                    self._sending = False
                    if pause := self._pace.after(size):
                        self._work.wait_for(lambda: self._stop, pause)
            self._connection.send_json(Kind.ABORT, {"reason": str(self._read_error or "it was stopped")[:4000]})
        except BaseException as error:
            with self._lock:  # what the destination said before the connection broke is more informative
                self._end.wait_for(lambda: self._answered, 1.0)
            self._finish(error)

    def _next(self) -> list[Outgoing]:
        """The next frame, once it fits into the window, and small ones after it; none to stop."""
        with self._lock:
            self._work.wait_for(lambda: self._stop or self._fits())
            batch: list[Outgoing] = []
            size = 0
            while not self._stop and self._fits() and (not batch or size + self._ready[0].wire_bytes <= BATCH):
                frame = self._ready.popleft()
                batch.append(frame)
                size += frame.wire_bytes
                if frame.is_acknowledged:
                    self._unacknowledged.append(frame.raw_bytes)
                    self._in_flight += frame.raw_bytes
            self._sending = bool(batch)
            self._room.notify()
            return batch

    def _fits(self) -> bool:
        if not self._ready:
            return False
        return not self._in_flight or self._in_flight + self._ready[0].raw_bytes <= WINDOW


class _Pace:
    """Limits a sender to a number of bytes per second, averaged over a segment."""

    def __init__(self, bytes_per_second: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = bytes_per_second
        self._clock = clock
        self._due = clock()  # when all that was sent so far should have finished

    def after(self, size: int) -> float:
        """Seconds to wait after `size` bytes have been sent."""
        if not self._rate:
            return 0.0
        now = self._clock()
        self._due = max(now - 0.1, self._due) + size / self._rate
        return max(0.0, self._due - now)


def _read_held(connection: Connection, reply: Held, files: Sequence[SourceFile]) -> list[bytearray]:
    """The digests of the segments that the destination has of each file, concatenated.

    Digests of segments that the file cannot have, or beyond HELD_KEPT, are dropped: those segments are sent again.
    """
    held = [bytearray() for _ in files]
    missing = {int(key): count for key, count in reply.held.items() if key.isdecimal()}
    while any(count > 0 for number, count in missing.items() if number < len(files)):
        frame = connection.receive(within=connection.timeout)
        if frame.kind is not Kind.HELD or len(frame.body) <= 4 or len(frame.body) % DIGEST_SIZE != 4:
            raise ProtocolError(reason=f"it sent {frame.kind.name} where the digests of what it holds were expected")
        (number,) = struct.unpack_from("!I", frame.body)
        digests = frame.body[4:]
        if number not in missing or number >= len(files):
            raise ProtocolError(reason="it holds segments of a file that is not being sent")
        size = files[number].size
        most = HELD_KEPT if size is None else size // SEGMENT_MAX + 1
        held[number] += digests[: max(0, most * DIGEST_SIZE - len(held[number]))]
        missing[number] -= len(digests) // DIGEST_SIZE
        if missing[number] < 0:
            raise ProtocolError(reason="it holds more segments than it said")
    return held
