# SPDX-License-Identifier: GPL-2.0-or-later
"""Subvolumes and their streams: through pybtrfs for the former, `btrfs send | btrfs receive` for the latter.

pybtrfs is imported only when a subvolume is looked at. Its errors carry no path, so ours do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import os
import select
import subprocess
import uuid as uuid_module
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from migrator.base import removal
from migrator.base.run import Program, run, shown, started
from migrator.errors import MigratorError
from migrator.errors.data import DiskFull, NotBtrfs, ReceiveFailed, SendFailed, SnapshotFailed
from migrator.errors.this_host import CommandFailed, CommandTimeout, PackageMissing
from migrator.host import no_devices

STREAM_LIMIT = 24 * 3600.0  # seconds; the transfer has a shorter limit of its own on silence
NESTED_MAX = 100  # subvolumes inside another one that are reported
NESTED_TRIES = 3
CLEAN_LIMIT = 600.0  # seconds that freeing what was deleted may take
DRAIN_LIMIT = 600.0  # seconds that `btrfs receive` may work on after its last byte, or before it accepts another
_LOOKS = 60  # looks over which they are counted: time for which this process was stopped is not time waited


def _pybtrfs() -> Any:
    try:
        import pybtrfs
    except ImportError as error:
        raise PackageMissing(module="pybtrfs", package="python3-pip, then pip install pybtrfs", reason=error) from error
    return pybtrfs


@dataclasses.dataclass(frozen=True)
class Subvolume:
    """A subvolume's identity (btrfs-subvolume(8))."""

    path: Path
    uuid: str
    received_uuid: str  # the uuid it had on the host it was sent from, or ""
    read_only: bool
    generation: int
    parent_uuid: str = ""  # of the subvolume that it is a snapshot of, or ""
    # The transaction that changed its files last; taking a snapshot of it or renaming it does not count; see `sync`
    changed: int = 0

    @property
    def stream_uuid(self) -> str:
        """What `btrfs send -p` calls this subvolume to the receiver: the uuid where it was first made."""
        return self.received_uuid or self.uuid


def is_subvolume(path: Path) -> bool:
    """Whether `path` is the top of a subvolume; False if it does not exist."""
    return path.is_dir() and bool(_pybtrfs().is_subvolume(str(path)))


def info(path: Path) -> Subvolume:
    """A subvolume's identity; raises NotBtrfs."""
    if not is_subvolume(path):
        raise NotBtrfs(path=path)
    found = _pybtrfs().subvolume_info(str(path))
    return Subvolume(
        path=path,
        uuid=_uuid(found.uuid),
        received_uuid=_uuid(found.received_uuid),
        read_only=bool(_pybtrfs().get_subvolume_read_only(str(path))),
        generation=int(found.generation),
        parent_uuid=_uuid(found.parent_uuid),
        changed=int(found.ctransid),
    )


def parent_of(number: int, path: Path) -> str:
    """The uuid of what subvolume `number`, anywhere on the file system of `path`, is a snapshot of, or ""."""
    return _uuid(_pybtrfs().subvolume_info(str(path), number).parent_uuid)


def uuid_around(path: Path) -> str:
    """The uuid of the subvolume that contains `path`; raises SnapshotFailed."""
    with _failing_as("examined", path):
        return _uuid(_pybtrfs().subvolume_info(str(path), id_of(path)).uuid)


def id_of(path: Path) -> int:
    """The id of the subvolume that contains `path`, unique on its file system."""
    return int(_pybtrfs().subvolume_id(str(path)))


def _uuid(value: Any) -> str:
    raw = value if isinstance(value, bytes) else uuid_module.UUID(str(value)).bytes if value else bytes(16)
    return "" if not any(raw) else str(uuid_module.UUID(bytes=raw))


def snapshot_command(source: Path, target: Path, *, read_only: bool) -> list[str]:
    return ["btrfs", "subvolume", "snapshot", *(["-r"] if read_only else []), str(source), str(target)]


def snapshot(source: Path, target: Path, *, read_only: bool) -> Subvolume:
    """A snapshot of `source` at `target`, which must not exist; raises SnapshotFailed."""
    with _failing_as("snapshotted", source):
        _pybtrfs().create_snapshot(str(source), str(target), read_only=read_only)
    return info(target)


def nested(path: Path) -> list[str]:
    """Subvolumes inside a subvolume, as relative paths, up to NESTED_MAX; raises SnapshotFailed if that is unknown.

    A snapshot leaves them out (btrfs-subvolume(8)).
    """
    for left in reversed(range(NESTED_TRIES)):
        try:
            with _failing_as("searched for others", path), _pybtrfs().SubvolumeIterator(
                    str(path), top=id_of(path)) as found:
                return [os.fsdecode(name) for name, _ in itertools.islice(found, NESTED_MAX)]
        except SnapshotFailed:  # for example because one was deleted meanwhile
            if not left:
                raise
    return []


def delete(path: Path, *, inner: bool = False) -> None:
    """Delete a subvolume; does nothing if it does not exist. Raises SnapshotFailed.

    Also if it has others inside, which belong to someone: with `inner` they are deleted as well. What is mounted in it
    always prevents it.
    """
    if is_subvolume(path):
        if mounted := removal.mounts_in(path):
            raise SnapshotFailed(path=path, action="deleted",
                                 reason=f"it stays, as something is mounted in it: {', '.join(mounted[:5])}")
        try:
            with _failing_as("deleted", path):
                _pybtrfs().delete_subvolume(str(path), recursive=inner)
        except SnapshotFailed as error:
            with contextlib.suppress(SnapshotFailed):
                if found := nested(path):
                    error.fields["reason"] = f"it has subvolumes inside: {', '.join(found[:5])}"
            raise


def make_writable(path: Path) -> None:
    """Make a subvolume writable; one that was received no longer counts as such. Raises SnapshotFailed."""
    with _failing_as("made writable", path):
        _pybtrfs().set_subvolume_read_only(str(path), False)


def sync(path: Path) -> None:
    """Commit what was done on this file system to its disk."""
    with _failing_as("synced", path):
        _pybtrfs().sync(str(path))


@contextlib.contextmanager
def _failing_as(action: str, path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, _pybtrfs().BtrfsUtilError) as error:
        raise SnapshotFailed(path=path, action=action, reason=error) from error


def send_command(snapshot: Path, parent: Path | None) -> list[str]:
    return ["btrfs", "send", "-q", *(["-p", str(parent)] if parent else []), str(snapshot)]


def receive_command(folder: Path) -> list[str]:
    # -e stops at the end marker of one stream, so that a truncated stream is an error and not an early success. -C
    # confines what it makes and writes to the directory, whatever paths and symlinks the stream has. What it clones
    # from, or makes a snapshot of, it searches for on the whole file system: see `send_stream`; for devices see
    # `no_devices`.
    return ["btrfs", "receive", "-q", "-e", "-C", str(folder)]


class SendStream:
    """The stream of `btrfs send`, for reading; raises SendFailed at its end if the send failed."""

    def __init__(self, program: Program, snapshot: Path) -> None:
        self._program = program
        self._snapshot = snapshot

    def readinto(self, buffer: memoryview | bytearray) -> int:
        """Like a raw file's: fills some of `buffer`, 0 at the end; raises SendFailed if the send failed."""
        count = self._program.stdout.readinto(buffer)  # type: ignore[attr-defined]
        if not count:
            status = self._program.wait(DRAIN_LIMIT)
            if status != 0:
                failure = self._program.failure(status)
                raise SendFailed(snapshot=self._snapshot, reason=failure.fields["output"])
        return int(count or 0)


@contextlib.contextmanager
def send(snapshot: Path, parent: Path | None = None, *, limit: float = STREAM_LIMIT) -> Iterator[SendStream]:
    """The send stream of a read-only snapshot, in full or as an increment on `parent`.

    Raises CommandTimeout if the block takes longer than `limit` seconds.
    """
    with started(send_command(snapshot, parent), stdout=subprocess.PIPE, limit=limit) as program:
        _widen(program.stdout.fileno())
        yield SendStream(program, snapshot)


def receive(stream: Iterable[bytes | memoryview], folder: Path, *, limit: float = STREAM_LIMIT,
            begun: Callable[[Program], None] = lambda _: None) -> None:
    """Feed a send stream to `btrfs receive` in `folder`, within `limit` seconds.

    Raises DiskFull if there was no room and it could be received once there is some, else ReceiveFailed;
    CommandTimeout, also if it accepts nothing for DRAIN_LIMIT seconds, for example because its stream made it open a
    FIFO.

    A receive that was interrupted leaves a subvolume without received_uuid: the caller knows its name and removes it.
    `begun` is passed the program. It opens no device, whatever the stream says.
    """
    def within() -> None:
        try:
            no_devices.enter()
        except OSError as error:
            raise ReceiveFailed(path=folder, reason=f"it could not be kept from devices: {error}") from error

    with started(receive_command(folder), stdin=subprocess.PIPE, limit=limit, within=within) as program:
        begun(program)
        _widen(program.stdin.fileno())
        try:
            with program.stdin:
                for chunk in stream:
                    _feed(program, chunk)
        except BrokenPipeError:
            pass  # it has failed; its own message says why
        try:
            program.finish(DRAIN_LIMIT)
        except CommandFailed as error:
            said = str(error.fields["output"])
            for number in (errno.ENOSPC, errno.EDQUOT):
                if any(line.endswith(f": {os.strerror(number)}") for line in said.splitlines()):
                    raise DiskFull(reason=f"{folder}: {os.strerror(number)}") from error
            raise ReceiveFailed(path=folder, reason=said) from error


def _feed(program: Program, chunk: bytes | memoryview) -> None:
    """Write all of it; raises BrokenPipeError if the program has ended, and CommandTimeout."""
    fd, rest = program.stdin.fileno(), memoryview(chunk).cast("B")
    os.set_blocking(fd, False)
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    while rest:
        if not any(poll.poll(DRAIN_LIMIT * 1000 / _LOOKS) for _ in range(_LOOKS)):
            program.kill()
            raise CommandTimeout(command=shown(program.argv), limit=f"{DRAIN_LIMIT:g}")
        rest = rest[os.write(fd, rest):]


def _widen(fd: int) -> None:
    """A pipe of 1 MiB instead of 64 KiB: fewer context switches between the programs at its ends."""
    import fcntl

    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, 1 << 20)


def wait_deleted(path: Path) -> None:
    """Wait until the space of deleted subvolumes is free; btrfs frees it in the background (btrfs-subvolume(8), sync).
    """
    sync(path)
    with contextlib.suppress(MigratorError):
        run(["btrfs", "subvolume", "sync", str(path)], limit=CLEAN_LIMIT)
    sync(path)  # freed space can be used again after the next commit


def exclusive_bytes(path: Path) -> int:
    """Bytes that no other subvolume shares with this one: what its removal would free (btrfs-filesystem(8), du)."""
    return _used(path)[1]


def total_bytes(path: Path) -> int:
    """Bytes of everything in a subvolume, shared or not: its removal frees at most that many."""
    return _used(path)[0]


def _used(path: Path) -> list[int]:
    said = run(["btrfs", "filesystem", "du", "-s", "--raw", str(path)], limit=DRAIN_LIMIT).text
    return [int(word) for word in said.splitlines()[-1].split()[:2]]


def quota(path: Path) -> list[tuple[str, int, int]]:
    """Each qgroup that limits a subvolume, with its limits in bytes, total and exclusive; -1 for no limit.

    Empty if quotas are off (btrfs-qgroup(8)).
    """
    try:
        said = run(["btrfs", "qgroup", "show", "-reF", "--raw", str(path)], limit=DRAIN_LIMIT).text
    except CommandFailed:
        return []
    found = []
    for group, _, _, *limits in filter(lambda words: len(words) >= 5, map(str.split, said.splitlines())):
        most, alone = (int(word) if word.isdecimal() else -1 for word in limits[:2])
        if (most, alone) != (-1, -1):
            found.append((group, most, alone))
    return found


def free_bytes(path: Path) -> int:
    """Bytes that may still be written to the file system of `path`."""
    stat = os.statvfs(path)
    return stat.f_bavail * stat.f_frsize
