# SPDX-License-Identifier: GPL-2.0-or-later
"""The receiving end of a transfer: frames become files.

It uses three threads, so that network, CPU and disk work at the same time: the caller's reads frames; one decompresses,
checks and writes segments; one syncs what has been written, adds it to the index and only then acknowledges it. Each
sync covers all that was written while the previous one ran.
"""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import struct
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import zstandard

from migrator.base.figures import size
from migrator.errors import InternalError, MigratorError
from migrator.errors.connection import ConnectionLost, ProtocolError
from migrator.errors.data import NoSpace, SegmentDamaged, WriteFailed
from migrator.errors.documented import DocumentedError
from migrator.transfer import segments
from migrator.transfer.arriving_file import Incoming, Watcher, Written
from migrator.transfer.frames import DIGEST_SIZE, HELD_MAX, SEGMENT_MAX, Frame, Kind
from migrator.transfer.messages import Arrived, File, FileBegins, Received
from migrator.transfer.room_bounds import MARGIN, Bounds
from migrator.transfer.rpc import Connection
from migrator.transfer.segments import INDEX_SUFFIX, End, Index, Segment
from migrator.transfer.stream import Bytes
from migrator.transfer.wire_codec import decoded

SEGMENT_HEAD = struct.Struct(f"!I{DIGEST_SIZE}s")  # raw length, digest
FILE_END = struct.Struct(f"!Q{DIGEST_SIZE}s")  # raw length, digest over the segments' digests
ACK = struct.Struct("!Q")
COMPRESSED = 1  # flag of a SEGMENT

_QUEUE = 8  # frames waiting to be written
_UNSYNCED = 32  # things waiting to be synced: as many small files may be open, and as many again that are being synced
_SMALL = 64 * 1024  # bytes; a smaller segment gets memory of its own and does not occupy a large buffer


class Receiver:
    """One transfer into an open directory. `held` is what the directory already has of each announced file."""

    def __init__(self, path: Path, folder: int, announced: Sequence[File], held: list[Index], durable: bool,
                 watcher: Watcher | None = None, bounds: Bounds | None = None) -> None:
        self.held = held
        self._path = path
        self._folder = folder
        self._announced = announced
        self._durable = durable
        self._watcher = watcher
        self._bounds = bounds or Bounds(MARGIN if durable else 0)
        self._frames: queue.Queue[Frame | None] = queue.Queue(_QUEUE)
        self._written: queue.Queue[Written | None] = queue.Queue(_UNSYNCED)
        self._buffers: queue.Queue[bytearray] = queue.Queue()
        self._spare_buffers = _QUEUE + 2
        self._failing = threading.Lock()
        self._error: DocumentedError | None = None
        self._file: Incoming | None = None  # the one that segments belong to
        self._open: list[Incoming] = []  # that one and those before it that are not on disk yet
        self._done: dict[str, End] = {}
        self._acknowledged = 0

    @property
    def missing_bytes(self) -> int:
        """How much is still to come of the files whose size is known."""
        pairs = zip(self._announced, self.held, strict=True)
        return sum(max(0, entry.size - index.length) for entry, index in pairs if entry.size is not None)

    def run(self, connection: Connection) -> Received:
        """Receive all files, unless the sender gives up.

        Raises what went wrong here, once the sender has stopped; ConnectionLost and ProtocolError at once. Whatever
        happens, the segments that came through are kept for the next time.
        """
        self._send_held(connection)
        workers = [
            threading.Thread(target=self._write_frames, args=(connection,), name="migrator-write", daemon=True),
            threading.Thread(target=self._commit_written, args=(connection,), name="migrator-commit", daemon=True),
        ]
        for worker in workers:
            worker.start()
        complete = False
        try:
            complete = self._read_frames(connection)
        finally:
            self._frames.put(None)
            workers[0].join()
            self._written.put(None)
            workers[1].join()
            self._close_files()
            if self._watcher:
                self._watcher.end(complete=complete and not self._error and len(self._done) == len(self._announced))
        if self._error:
            raise self._error
        if not complete:
            return Received(aborted=True)
        if len(self._done) != len(self._announced):
            raise ProtocolError(reason="it ended the transfer before its last file")
        self._sync_all()
        return Received(files={name: Arrived(bytes=end.length, digest=end.digest.hex())
                               for name, end in self._done.items()})

    def _send_held(self, connection: Connection) -> None:
        for number, index in enumerate(self.held):
            for first in range(0, len(index.segments), HELD_MAX):
                digests = b"".join(segment.digest for segment in index.segments[first : first + HELD_MAX])
                connection.send(Kind.HELD, struct.pack("!I", number), digests)

    # --- From the network ---

    def _read_frames(self, connection: Connection) -> bool:
        """Pass frames on until the end of the transfer; False if the sender gave it up."""
        while True:
            frame = connection.receive(self._room)
            if frame.kind is Kind.END:
                return True
            if frame.kind is Kind.ABORT:
                return False
            if frame.kind not in (Kind.FILE, Kind.SEGMENT, Kind.FILE_END):
                raise ProtocolError(reason=f"it sent {frame.kind.name} in the middle of a transfer")
            self._frames.put(frame)

    def _room(self, length: int) -> memoryview:
        if length <= _SMALL:
            return memoryview(bytearray(length))
        if self._buffers.empty() and self._spare_buffers:
            self._spare_buffers -= 1
            return memoryview(bytearray(SEGMENT_HEAD.size + SEGMENT_MAX))[:length]
        return memoryview(self._buffers.get())[:length]

    # --- To the files ---

    def _write_frames(self, connection: Connection) -> None:
        decompressor = zstandard.ZstdDecompressor()
        while (frame := self._frames.get()) is not None:
            if not self._error:
                with self._stopping(connection):
                    self._write_frame(frame, decompressor)
            if len(frame.body) > _SMALL and isinstance(frame.body.obj, bytearray):
                self._buffers.put(frame.body.obj)

    def _write_frame(self, frame: Frame, decompressor: zstandard.ZstdDecompressor) -> None:
        if frame.kind is Kind.FILE:
            self._file = self._begin(decoded(FileBegins, frame.json()))
            return
        file = self._file
        if file is None:
            raise ProtocolError(reason=f"it sent {frame.kind.name} outside of a file")
        if frame.kind is Kind.SEGMENT:
            segment, data = self._decode(frame, file, decompressor)
            announced = self._announced[len(self._done)].size
            self._bounds.check(file.name, file.length + segment.length, segment.length, announced, self._folder,
                               self._imported())
            self._append(file, data)
            file.segments.append(segment)
            self._written.put(Written(file, segments.line(segment), segment))
            return
        end = segments.whole(file.segments)
        if len(frame.body) != FILE_END.size or FILE_END.unpack(frame.body) != (end.length, end.digest):
            raise SegmentDamaged(segment=len(file.segments), file=file.name)
        self._done[file.name] = end
        self._file = None
        self._written.put(Written(file, segments.last_line(end), None))

    def _begin(self, said: FileBegins) -> Incoming:
        """Open the next file, truncated to those of its segments that match the sender's."""
        number, keep = said.file, said.keep
        if self._file or number != len(self._done):
            raise ProtocolError(reason="it sent files out of order")
        name, held = self._announced[number].name if number < len(self._announced) else "", self.held
        if not name or keep > len(held[number].segments):
            raise ProtocolError(reason="it wants to continue from where there is nothing")
        kept = held[number].segments[:keep]
        length = sum(segment.length for segment in kept)
        if not kept:  # a new one takes space even if it stays empty
            self._bounds.check(name, 0, 0, None, self._folder)
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        # The index first: it must never vouch for data that is being cut off.
        index_fd = os.open(name + INDEX_SUFFIX, flags, 0o600, dir_fd=self._folder)
        try:
            os.ftruncate(index_fd, segments.lines_size(keep))
            if self._durable and held[number].segments:
                os.fsync(index_fd)
            data_fd = os.open(name, flags, 0o600, dir_fd=self._folder)
        except BaseException:
            os.close(index_fd)
            raise
        file = Incoming(name, data_fd, index_fd, kept, length)
        self._open.append(file)
        os.ftruncate(data_fd, length)
        os.lseek(index_fd, 0, os.SEEK_END)
        if self._watcher:
            self._watcher.begin(kept)
        return file

    def _decode(self, frame: Frame, file: Incoming, zstd: zstandard.ZstdDecompressor) -> tuple[Segment, Bytes]:
        """The raw bytes of a SEGMENT, checked; raises SegmentDamaged."""
        if len(frame.body) < SEGMENT_HEAD.size or frame.flags & ~COMPRESSED:
            raise ProtocolError(reason="it sent an invalid segment")
        length, digest = SEGMENT_HEAD.unpack_from(frame.body)
        if not 1 <= length <= SEGMENT_MAX or (file.segments and file.segments[-1].length != SEGMENT_MAX):
            raise ProtocolError(reason=f"it sent a segment of {length} bytes where none of that length is allowed")
        data: Bytes = frame.body[SEGMENT_HEAD.size :]
        damaged = SegmentDamaged(segment=len(file.segments), file=file.name)
        if frame.flags & COMPRESSED:
            try:
                # Its own header says how much memory decompressing takes: believe it only if we were told the same.
                if zstandard.get_frame_parameters(data).content_size != length:
                    raise damaged
                data = zstd.decompress(data, max_output_size=length)
            except zstandard.ZstdError:
                raise damaged from None
        if len(data) != length or segments.digest_of(data) != digest:
            raise damaged
        return Segment(length, digest), data

    def _append(self, file: Incoming, data: Bytes) -> None:
        rest = memoryview(data)
        while rest:
            written = os.pwrite(file.data_fd, rest, file.length)
            file.length += written
            rest = rest[written:]

    # --- To the disk, and back to the sender ---

    def _commit_written(self, connection: Connection) -> None:
        ended = False
        while not ended:
            batch: list[Written] = []
            found = self._written.get()
            while found is not None:
                batch.append(found)
                if len(batch) == _UNSYNCED or self._written.empty():
                    break
                found = self._written.get()
            ended = found is None
            if batch:
                with self._stopping(connection):
                    self._commit(batch)
                    # If the sender is gone, what it has sent is still worth keeping; the reading thread will notice.
                    with contextlib.suppress(ConnectionLost):
                        connection.send(Kind.ACK, ACK.pack(self._acknowledged))

    def _commit(self, batch: list[Written]) -> None:
        lines: dict[int, bytes] = {}  # for each index file
        files = {written.file.index_fd: written.file for written in batch}
        for written in batch:
            lines[written.file.index_fd] = lines.get(written.file.index_fd, b"") + written.line
        if self._durable:
            for file in files.values():
                os.fdatasync(file.data_fd)
        for fd, text in lines.items():
            if os.write(fd, text) != len(text):  # a partial line is ignored when the index is read
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if self._durable:
                os.fdatasync(fd)
        for written in batch:
            if written.segment is None:
                self._close(written.file)
            elif self._watcher:
                self._watcher.add(written.segment)
        self._acknowledged += len(batch)

    def _close(self, file: Incoming) -> None:
        self._open.remove(file)
        os.close(file.data_fd)
        os.close(file.index_fd)

    def _close_files(self) -> None:
        """Close files that have not been completed, truncated to whole segments."""
        for file in self._open[:]:
            with contextlib.suppress(OSError):
                os.ftruncate(file.data_fd, sum(segment.length for segment in file.segments))
            self._close(file)

    def _sync_all(self) -> None:
        """Sync the directory, and the files unless each segment was synced."""
        try:
            for name in [] if self._durable else self._done:
                for path in (name, name + INDEX_SUFFIX):
                    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._folder)
                    try:
                        os.fdatasync(fd)
                    finally:
                        os.close(fd)
            os.fsync(self._folder)
        except OSError as error:
            raise self._described(error) from error

    # --- When it fails ---

    @contextlib.contextmanager
    def _stopping(self, connection: Connection) -> Iterator[None]:
        """Keep a worker's first error for `run` and ask the sender to stop; what still comes is discarded."""
        try:
            yield
        except Exception as error:
            with self._failing:
                if self._error:
                    return
                self._error = self._described(error)
            with contextlib.suppress(MigratorError):
                connection.send(Kind.STOP)

    def _described(self, error: Exception) -> DocumentedError:
        if isinstance(error, DocumentedError):
            return error
        if not isinstance(error, OSError):
            return InternalError(reason=f"{type(error).__name__} while receiving: {error}")
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return WriteFailed(path=self._path, reason=error.strerror or error)
        found = os.statvfs(self._path)
        stays = self._bounds.stays_free(self._file.length if self._file else 0, self._imported())
        return NoSpace(where=self._path, free=size(found.f_bavail * found.f_frsize),
                       needed=size(max(SEGMENT_MAX, self._left()) + stays),
                       what=self._file.name if self._file else "the data")

    def _imported(self) -> int:
        return self._watcher.taken if self._watcher else 0

    def _left(self) -> int:
        """Bytes still to be written of the files whose size is known."""
        done = sum(end.length for end in self._done.values()) + (self._file.length if self._file else 0)
        return sum(entry.size or 0 for entry in self._announced) - done
