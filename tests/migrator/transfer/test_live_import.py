# SPDX-License-Identifier: GPL-2.0-or-later
"""The import behind a transfer: a stream is read while it arrives, and one that breaks off is never taken for whole."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from migrator.base import run
from migrator.errors import MigratorError
from migrator.errors.connection import ConnectionLost
from migrator.errors.data import DiskFull, SegmentDamaged
from migrator.host import btrfs, no_devices
from migrator.remote.answering import Service
from migrator.transfer import frames, live_import, received_snapshot, receiver, segments, sender, spool, stream_reader
from migrator.transfer.live_import import Behind
from migrator.transfer.messages import Transfer
from migrator.transfer.segments import Segment
from migrator.transfer.sender import SourceFile
from tests.effort import tries
from tests.migrator.wire import CutStream, connected, listed

SEGMENT = 4096


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (frames, segments, receiver, stream_reader, sender, spool):
        monkeypatch.setattr(module, "SEGMENT_MAX", SEGMENT)


class Received:
    """Takes the place of btrfs: what was fed to `receive`, and how that ended."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.data = b""
        self.whole = False
        monkeypatch.setattr(btrfs, "delete", lambda _: None)
        monkeypatch.setattr(btrfs, "receive", self.receive)

    def receive(self, stream: Iterable[memoryview], _folder: Path, **_: object) -> None:
        self.data, self.whole = b"", False
        for piece in stream:
            self.data += piece
        self.whole = True


def attempt(folder: Path, data: bytes, stream: CutStream | None = None, *, wait: bool = True) -> Behind:
    """Send `data` with an import behind it; the import, which has ended, unless one does not `wait`."""
    (folder / "snapshots").mkdir(exist_ok=True)
    importing = Behind(folder / "disk-1", folder / "snapshots" / "target")
    handlers = {"transfer": lambda fields: spool.receive(folder, listed(fields["files"]), watcher=importing)}
    try:
        with connected(handlers, stream) as (connection, _):
            sender.send_files(connection, Transfer(), [SourceFile("disk-1", _Reader(data))])
    except MigratorError:
        assert stream
    if wait:
        importing.wait()
    return importing


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)

    def readinto(self, buffer: memoryview) -> int:
        count = min(len(buffer), len(self._data))
        buffer[:count] = self._data[:count]
        self._data = self._data[count:]
        return count


@pytest.mark.parametrize("size", [0, 1, SEGMENT, 10 * SEGMENT + 7])
def test_it_is_imported_while_it_arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_segments: None,
                                         size: int) -> None:
    received, data = Received(monkeypatch), os.urandom(size)
    done = attempt(tmp_path, data)
    assert received.whole and received.data == data
    assert done.brought(tmp_path / "snapshots" / "target")
    assert not done.brought(tmp_path / "another")


@settings(max_examples=tries(10, 200), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(limit=st.integers(400, 60_000))
def test_cut_anywhere_it_is_not_whole_and_the_next_one_begins_at_the_beginning(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, small_segments: None, limit: int,
) -> None:
    received, data, folder = Received(monkeypatch), os.urandom(60_000), tmp_path_factory.mktemp("cut")
    done = attempt(folder, data, CutStream(limit=limit))
    if not done.brought(folder / "snapshots" / "target"):
        assert not received.whole and data.startswith(received.data)
    again = attempt(folder, data)
    assert again.brought(folder / "snapshots" / "target") and received.data == data


@pytest.mark.parametrize("fails", [False, True])
def test_what_it_has_taken_is_not_imported_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                     small_segments: None, fails: bool) -> None:
    def receive(stream: Iterable[memoryview], *_: object, **__: object) -> None:
        assert sum(len(piece) for piece in stream) == 3 * SEGMENT
        if fails:
            raise DiskFull(reason="it is")

    monkeypatch.setattr(received_snapshot, "receive", receive)
    assert attempt(tmp_path, os.urandom(3 * SEGMENT)).taken == 3 * SEGMENT, "what it has made of that lies there still"


def test_the_reader_waits_for_what_has_not_arrived(tmp_path: Path) -> None:
    path, piece = tmp_path / "disk-1", os.urandom(100)
    path.write_bytes(piece * 2)
    follower, found = spool.Follower(path), []

    def follow() -> None:
        for got in follower:
            found.append(bytes(got))

    thread = threading.Thread(target=follow)
    thread.start()
    segment = Segment(100, segments.digest_of(piece))
    follower.begin([segment])
    while not found and thread.is_alive():
        time.sleep(0.01)
    thread.join(0.2)
    assert thread.is_alive() and found == [piece]
    follower.add(segment)
    follower.end(complete=True)
    thread.join()
    assert found == [piece, piece]


def test_a_damaged_piece_is_not_handed_out(tmp_path: Path) -> None:
    path = tmp_path / "disk-1"
    path.write_bytes(b"a" * 100)
    follower = spool.Follower(path)
    follower.begin([Segment(100, segments.digest_of(b"b" * 100))])
    with pytest.raises(SegmentDamaged):
        next(iter(follower))


def test_what_was_not_read_when_it_broke_off_is_not_waited_for(tmp_path: Path) -> None:
    path, piece = tmp_path / "disk-1", os.urandom(100)
    path.write_bytes(piece * 3)
    segment = Segment(100, segments.digest_of(piece))
    follower = spool.Follower(path)
    follower.begin([segment] * 3)
    pieces = iter(follower)
    assert bytes(next(pieces)) == piece
    follower.end(complete=False)
    with pytest.raises(ConnectionLost):
        next(pieces)


def test_a_stream_without_an_end_is_an_error(tmp_path: Path) -> None:
    follower = spool.Follower(tmp_path / "disk-1")
    follower.end(complete=False)
    with pytest.raises(ConnectionLost):
        list(follower)


def test_an_import_that_takes_too_long_is_broken_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                     small_segments: None) -> None:
    received, slow = Received(monkeypatch), threading.Event()

    def receive(stream: Iterable[memoryview], _folder: Path, **_: object) -> None:
        for _piece in stream:
            slow.wait()
        received.whole = True

    monkeypatch.setattr(btrfs, "receive", receive)
    importing = attempt(tmp_path, os.urandom(3 * SEGMENT), wait=False)
    end = importing._follower.end

    def break_off(*, complete: bool) -> None:
        end(complete=complete)
        slow.set()  # btrfs comes to its next piece

    monkeypatch.setattr(importing._follower, "end", break_off)
    assert not importing.brought(tmp_path / "snapshots" / "target", 0.01)
    assert not received.whole


def test_one_that_works_on_behind_its_last_byte_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                         small_segments: None) -> None:
    """`btrfs receive` has all of it and is not ready yet; a program that reads all and then sleeps stands for it."""
    script = "cat >/dev/null; echo read >&3; exec sleep 600"
    read, write = os.pipe()
    monkeypatch.setattr(btrfs, "receive_command", lambda _: ["sh", "-c", script.replace("&3", f"/dev/fd/{write}")])
    honest = run.started
    monkeypatch.setattr(btrfs, "started", lambda *given, **more: honest(*given, pass_fds=(write,), **more))
    monkeypatch.setattr(no_devices, "enter", lambda: None)
    monkeypatch.setattr(btrfs, "delete", lambda _: None)
    importing = attempt(tmp_path, os.urandom(3 * SEGMENT), wait=False)
    assert os.read(read, 5) == b"read\n"
    assert not importing.brought(tmp_path / "snapshots" / "target", 0.01)
    assert importing.wait()
    for end in (read, write):
        os.close(end)


def test_one_that_begins_at_the_moment_that_it_is_broken_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = threading.Event()
    killed: list[str] = []

    def receive(*_: object, begun: Callable[[object], None], **__: object) -> None:
        ready.wait()
        begun(SimpleNamespace(kill_group=lambda: killed.append("killed")))

    monkeypatch.setattr(received_snapshot, "receive", receive)
    monkeypatch.setattr(live_import, "END_LIMIT", 0.01)
    importing = Behind(tmp_path / "disk-1", tmp_path / "target")
    importing.begin([])
    assert not importing.wait(0.0), "nor is one waited for that does not end"
    ready.set()
    assert importing.wait() and killed == ["killed"]


@pytest.mark.parametrize("ends", [True, False])
def test_what_nobody_needs_any_more_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                      ends: bool) -> None:
    waited: list[object] = []

    def wait(_: Behind, limit: float | None = None) -> bool:
        waited.append(limit)
        return ends

    service = Service(cast("Any", None), contextlib.ExitStack())
    assert service.end_behind()
    monkeypatch.setattr(Behind, "wait", wait)
    first = service.import_behind(tmp_path / "disk-1", tmp_path / "target")
    assert first and waited == []
    assert service.end_behind() is ends
    again = service.import_behind(tmp_path / "disk-1", tmp_path / "target")
    assert waited == [0.0, 0.0] and service.behind is (again or first)
    assert (again is not None) is ends, "two would make the same snapshot"
