# SPDX-License-Identifier: GPL-2.0-or-later
"""The destination's spool: streams that arrive, wait, are checked and used.

A stream is a plain file, exactly as sent, with its index beside it (`migrator.transfer.segments`): btrfs and CRIU read
it directly, and every segment can be checked at any time. What has arrived stays when a connection is cut; the sender
resumes from there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from migrator.base.figures import size
from migrator.errors.connection import ConnectionLost, ProtocolError
from migrator.errors.data import NoSpace, SegmentDamaged
from migrator.errors.this_host import Busy
from migrator.transfer import segments
from migrator.transfer.arriving_file import Watcher
from migrator.transfer.frames import SEGMENT_MAX
from migrator.transfer.messages import FILES_MAX, File, Held, Received
from migrator.transfer.receiver import Receiver
from migrator.transfer.room_bounds import MARGIN, Bounds
from migrator.transfer.rpc import Connection, Takeover
from migrator.transfer.segments import INDEX_SUFFIX, Index, Segment

# In one directory, over all transfers. Of a dump, CRIU's page images are sent one by one before the rest, which is a
# single transfer: for each of these there are half a dozen other files.
FOLDER_MAX = 2 * FILES_MAX
LOCK_NAME = ".receiving"  # begins with a '.', which no stream's name can


def check_space(directory: Path, needed: int, *, what: str = "the data") -> None:
    """Raise NoSpace unless `needed` bytes, 2 % more and a margin are free on the file system of `directory`."""
    found = os.statvfs(directory)
    free = found.f_bavail * found.f_frsize
    wanted = needed + needed // 50 + MARGIN
    if free < wanted:
        raise NoSpace(where=directory, free=size(free), needed=size(wanted), what=what)


def size_of(directory: Path) -> int:
    """Bytes that have arrived in a spool; 0 if it does not exist."""
    try:
        return sum(entry.stat().st_size for entry in os.scandir(directory))
    except FileNotFoundError:
        return 0


def receive(
    directory: Path,
    files: Sequence[File],
    *,
    durable: bool = True,
    accepts: Callable[[str], bool] | None = None,
    watcher: Watcher | None = None,
    bounds: Bounds | None = None,
) -> Takeover:
    """What the handler of a "transfer" request returns in order to receive the streams in the request's `files`.

    They are written to `directory`, which is created if it does not exist (but not its parents). With `durable`, each
    segment is on disk before it is acknowledged; without it, for memory images and tmpfs, everything is at the end. A
    file whose name `accepts` does not allow is refused before anything is written. The `watcher` of a transfer of one
    file is told what of it is there; `bounds` limits the space it may take.

    Raises ProtocolError for a list that makes no sense, or if there would be more than FOLDER_MAX files; NoSpace; and
    Busy while another process receives into that directory.
    """
    if not files:
        raise ProtocolError(reason="a transfer has no files")
    if len({entry.name for entry in files}) != len(files):
        raise ProtocolError(reason="a transfer has two files of the same name")
    for entry in files:
        if accepts and not accepts(entry.name):
            raise ProtocolError(reason=f"it sends a file {entry.name}, which does not belong there")
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    lock = _lock(directory)
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _check_number(folder, files)
        receiver = Receiver(directory, folder, files, [_held(folder, entry.name) for entry in files], durable, watcher,
                            bounds)
        check_space(directory, receiver.missing_bytes, what=files[0].name if len(files) == 1 else "the data")
    except BaseException:
        os.close(folder)
        lock.close()
        raise

    def run(connection: Connection) -> Received:
        with lock:
            try:
                return receiver.run(connection)
            finally:
                os.close(folder)

    held = {str(number): len(index.segments) for number, index in enumerate(receiver.held) if index.segments}
    return Takeover(Held(held=held), run)


def _check_number(folder: int, files: Sequence[File]) -> None:
    """Each file takes an inode, and a place in the record of a dump, even if it is empty; raises ProtocolError."""
    there = {name.removesuffix(INDEX_SUFFIX) for name in os.listdir(folder)} - {LOCK_NAME}
    if len(there | {entry.name for entry in files}) > FOLDER_MAX:
        raise ProtocolError(reason=f"it sends more than {FOLDER_MAX} files in all")


def _lock(directory: Path) -> IO[str]:
    """Keep others from receiving into a directory; raises Busy.

    After a cut the old process may not have noticed yet, and would still write what is in its buffers.
    """
    path = directory / LOCK_NAME
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    lock = os.fdopen(fd, "r+")
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = lock.read(20).strip() or "unknown"
        lock.close()
        raise Busy(name=directory, pid=pid) from None
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock


def _held(folder: int, name: str) -> Index:
    """What is already here of a stream: those of its segments that both the index and the file's length vouch for."""
    try:
        data_fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        return Index([], None)
    try:
        length = os.fstat(data_fd).st_size
    finally:
        os.close(data_fd)
    try:
        index_fd = os.open(name + INDEX_SUFFIX, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        return Index([], None)
    with os.fdopen(index_fd, "rb") as file:
        index = segments.parse(file.read())
    there: list[Segment] = []
    for segment in index.segments:
        length -= segment.length
        if length < 0:
            return Index(there, None)
        there.append(segment)
    return index


# --- What has arrived -----------------------------------------------------------------------------------------


def is_complete(path: Path) -> bool:
    """Whether all of a stream has arrived. Its data is not read for that: `verify` and `verified` do so."""
    try:
        with _open(_index_path(path)) as index:
            index.seek(max(0, os.fstat(index.fileno()).st_size - segments.LAST_SIZE))
            return segments.parse_last(index.read(segments.LAST_SIZE)) == path.stat().st_size
    except FileNotFoundError:
        return False


def verified(path: Path) -> Iterator[memoryview]:
    """Read a complete stream back, segment by segment, each checked before it is handed out.

    A piece is valid until the next is requested. Raises SegmentDamaged, after truncating the index to what is good: the
    next transfer sends the damaged segment and everything after it again.
    """
    index = _complete_index(path)
    buffer = memoryview(bytearray(SEGMENT_MAX))
    with _open(path) as file:
        offset = 0
        for number, segment in enumerate(index.segments):
            piece = buffer[: segment.length]
            if not _reads_good(file.fileno(), piece, offset, segment):
                raise _damaged(path, number)
            yield piece
            offset += segment.length


class Follower:
    """Reads a stream while it is still arriving: the pieces of `verified`, each as soon as it is on disk.

    As the `watcher` of a transfer it is told what has arrived; another thread iterates over it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._arrived: queue.SimpleQueue[Segment | bool] = queue.SimpleQueue()
        self._broken = threading.Event()

    def begin(self, kept: Sequence[Segment]) -> None:
        for segment in kept:
            self._arrived.put(segment)

    def add(self, segment: Segment) -> None:
        self._arrived.put(segment)

    def end(self, *, complete: bool) -> None:
        if not complete:
            self._broken.set()  # what is there but unread is useless then, and someone may be waiting for us
        self._arrived.put(complete)

    def __iter__(self) -> Iterator[memoryview]:
        """Only once. Raises ConnectionLost if the rest does not come, and SegmentDamaged."""
        buffer = memoryview(bytearray(SEGMENT_MAX))
        with contextlib.ExitStack() as stack:
            fd, offset, number = -1, 0, 0
            while not isinstance(segment := self._arrived.get(), bool) and not self._broken.is_set():
                if fd < 0:
                    fd = stack.enter_context(_open(self._path)).fileno()
                piece = buffer[: segment.length]
                if not _reads_good(fd, piece, offset, segment):
                    raise SegmentDamaged(segment=number, file=self._path)
                yield piece
                offset, number = offset + segment.length, number + 1
            if not segment or self._broken.is_set():
                raise ConnectionLost(destination="the source", reason=f"{self._path.name} is not complete")


def verify(*paths: Path) -> None:
    """Check complete streams on all CPUs in parallel; raises SegmentDamaged as `verified` does.

    A dump of a few hundred processes has thousands of files: only as many are open at a time as there are CPUs.
    """
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            checks = []
            for path in paths:
                index = _complete_index(path)
                with _open(path) as file:  # even if it is empty
                    found = os.fstat(file.fileno())
                offset = 0
                for number, segment in enumerate(index.segments):
                    checks.append((path, number, pool.submit(_is_good, path, found, offset, segment)))
                    offset += segment.length
            for path, number, check in checks:
                if not check.result():
                    raise _damaged(path, number)
        finally:
            pool.shutdown(cancel_futures=True)


def drop(path: Path) -> None:
    """Remove a stream and its index; does nothing if they do not exist."""
    _index_path(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _index_path(path: Path) -> Path:
    return path.with_name(path.name + INDEX_SUFFIX)


def _open(path: Path) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb", buffering=0)


def _complete_index(path: Path) -> Index:
    try:
        with _open(_index_path(path)) as file:
            index = segments.parse(file.read())
    except FileNotFoundError:
        index = Index([], None)
    if index.end is None:
        raise _damaged(path, len(index.segments))
    return index


def _is_good(path: Path, found: os.stat_result, offset: int, segment: Segment) -> bool:
    """As `_reads_good`, but False if another file has its name by now: all segments must be of one file.

    Raises OSError.
    """
    with _open(path) as file:
        return os.path.samestat(os.fstat(file.fileno()), found) and _reads_good(
            file.fileno(), memoryview(bytearray(segment.length)), offset, segment)


def _reads_good(fd: int, piece: memoryview, offset: int, segment: Segment) -> bool:
    """Fill `piece` with a segment and return whether it is as it was sent. A disk read error counts as damage."""
    done = 0
    while done < len(piece):
        try:
            count = os.preadv(fd, [piece[done:]], offset + done)
        except OSError:
            return False
        if count == 0:
            return False
        done += count
    return segments.digest_of(piece) == segment.digest


def _damaged(path: Path, number: int) -> SegmentDamaged:
    """The error for a segment, after truncating the index so that it no longer vouches for it."""
    with contextlib.suppress(OSError):
        os.truncate(_index_path(path), min(segments.lines_size(number), _index_path(path).stat().st_size))
    return SegmentDamaged(segment=number, file=path)
