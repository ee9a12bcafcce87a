# SPDX-License-Identifier: GPL-2.0-or-later
"""Files whose transfer is given up: by the sender, by who asked for it, or for want of room."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import contextlib
import io
import os
import resource
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from migrator.errors import MigratorError
from migrator.errors.connection import ConnectionLost
from migrator.errors.containers import InvalidName
from migrator.errors.data import NoSpace, ReadFailed, WriteFailed
from migrator.errors.this_host import CommandFailed
from migrator.transfer import receiver, segments, sender, spool
from migrator.transfer.frames import Kind
from migrator.transfer.messages import Transfer
from migrator.transfer.rpc import Connection, Takeover
from migrator.transfer.sender import SourceFile, send_files
from tests.migrator.transfer.sent_files import SMALL, Dying, file, small_segments  # noqa: F401 -- a fixture
from tests.migrator.transfer.spools import arrived, handlers
from tests.migrator.wire import TIMEOUT, call, connected


@pytest.mark.parametrize("length", [0, 1, 5 * SMALL, 200 * SMALL + 9])
@pytest.mark.parametrize("error, expected", [
    (CommandFailed(command="btrfs send", outcome="exit status 1", output="no space"), CommandFailed),
    (OSError(5, "Input/output error"), ReadFailed),
    (ValueError("I/O operation on closed file"), ReadFailed),
])  # fmt: skip
def test_failing_reader(tmp_path: Path, small_segments: None, length: int, error: BaseException,
                        expected: type[MigratorError]) -> None:
    with connected(handlers(tmp_path)) as (connection, server):
        with pytest.raises(expected):
            send_files(connection, Transfer(), [file("first", b"data"), SourceFile("disk-1", Dying(length, error))])
        assert call(connection, "echo", still=1) == {"still": 1}
        assert not spool.is_complete(tmp_path / "disk-1")
        # and the next transfer works, on the same connection
        send_files(connection, Transfer(), [file("disk-1", b"other data")])
    assert server.error is None
    assert arrived(tmp_path / "disk-1") == b"other data"


@pytest.mark.parametrize("size", [0, 99, 101, 10 * SMALL])
def test_file_of_another_size_than_announced(tmp_path: Path, small_segments: None, size: int) -> None:
    with connected(handlers(tmp_path)) as (connection, _):
        with pytest.raises(ReadFailed):
            send_files(connection, Transfer(), [SourceFile("f", io.BytesIO(bytes(size)), 100)])
        assert call(connection, "echo", still=1) == {"still": 1}


def test_missing_source_file(tmp_path: Path) -> None:
    with connected(handlers(tmp_path / "spool")) as (connection, _):
        with pytest.raises(ReadFailed, match="No such file"):
            send_files(connection, Transfer(), [SourceFile("f", tmp_path / "absent", 100)])
        assert call(connection, "echo", still=1) == {"still": 1}


def test_refused_name(tmp_path: Path) -> None:
    with connected(handlers(tmp_path / "spool")) as (connection, _):
        with pytest.raises(InvalidName):
            send_files(connection, Transfer(), [file("../f", b"data")])
        assert call(connection, "echo", still=1) == {"still": 1}


def test_ctrl_c_leaves_the_connection_usable(tmp_path: Path, small_segments: None,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    pressed: list[threading.Thread] = []

    def under_way(done: int, _resumed: int) -> None:
        if done and not pressed:
            pressed.append(threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGINT)))
            pressed[0].start()

    monkeypatch.setattr(sender, "ABORT_LIMIT", TIMEOUT)
    with connected(handlers(tmp_path)) as (connection, _):
        with pytest.raises(KeyboardInterrupt):
            send_files(connection, Transfer(), [SourceFile("disk-1", Dying(1 << 60, ZeroDivisionError()))],
                       progress=under_way, bytes_per_second=1_000_000)
        assert call(connection, "echo", still=1) == {"still": 1}


def test_failing_progress_leaves_the_connection_usable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "ABORT_LIMIT", TIMEOUT)

    def wrong(_done: int, _resumed: int) -> None:
        raise ZeroDivisionError

    with connected(handlers(tmp_path)) as (connection, _):
        with pytest.raises(ZeroDivisionError):
            send_files(connection, Transfer(), [file("disk-1", os.urandom(20_000_000))], progress=wrong)
        assert call(connection, "echo", still=1) == {"still": 1}


class TooLate(Exception):
    """What a caller's own limit raises."""


@pytest.mark.parametrize("lets_go", [True, False])
def test_progress_is_asked_even_when_nothing_moves(monkeypatch: pytest.MonkeyPatch, lets_go: bool) -> None:
    """So that the limit on the time frozen holds for a destination that hangs."""
    over, asked = threading.Event(), []

    def hang(connection: Connection) -> dict[str, Any]:
        while connection.receive().kind is not Kind.ABORT:
            pass
        if not lets_go:
            over.wait()
        return {"aborted": True}

    def limit(done: int, _resumed: int) -> None:
        asked.append(done)
        if len(asked) == 3:
            raise TooLate

    monkeypatch.setattr(sender, "ABORT_LIMIT", TIMEOUT if lets_go else 0.1)
    with connected({"transfer": lambda _: Takeover({"held": {}}, hang), "echo": lambda f: f}) as (connection, _):
        try:
            with pytest.raises(TooLate):
                send_files(connection, Transfer(), [file("disk-1", os.urandom(20_000_000))], progress=limit,
                           bytes_per_second=1)
            assert asked == [0, 0, 0]
            if lets_go:
                assert call(connection, "echo", still=1) == {"still": 1}
            else:  # and what comes next is not held up by it
                with pytest.raises(ConnectionLost, match="closed on this side"):
                    call(connection, "echo")
        finally:
            over.set()


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process may be larger: the nearest to a full disk that needs no privilege."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("limit", [100, 8 * SMALL + 100])
def test_no_room(tmp_path: Path, small_segments: None, durable: bool, limit: int) -> None:
    data = os.urandom(50 * SMALL)
    with connected(handlers(tmp_path, durable=durable)) as (connection, server):
        with largest_file(limit), pytest.raises(NoSpace) as caught:
            send_files(connection, Transfer(), [file("disk-1", data)])
        assert str(tmp_path) in str(caught.value)
        assert call(connection, "echo", still=1) == {"still": 1}
        assert not spool.is_complete(tmp_path / "disk-1")
        # Room was made: it goes on from where it was.
        again = send_files(connection, Transfer(), [file("disk-1", data)])
    assert server.error is None
    assert again.resumed_bytes == limit // SMALL * SMALL
    assert arrived(tmp_path / "disk-1") == data


def test_disk_that_fails(tmp_path: Path, small_segments: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> int:
        raise OSError(5, "Input/output error")

    with connected(handlers(tmp_path, durable=True)) as (connection, _):
        with monkeypatch.context() as patched:
            patched.setattr(os, "fdatasync", fail)
            with pytest.raises(WriteFailed, match="Input/output error"):
                send_files(connection, Transfer(), [file("disk-1", os.urandom(20 * SMALL))])
        assert call(connection, "echo", still=1) == {"still": 1}
    assert not segments.parse((tmp_path / "disk-1.index").read_bytes()).segments


def test_unexpected_failure_of_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiver.Receiver, "_decode", lambda *_: 1 / 0)
    with connected(handlers(tmp_path)) as (connection, _):
        with pytest.raises(MigratorError, match="ZeroDivisionError while receiving"):
            send_files(connection, Transfer(), [file("disk-1", b"data")])
        assert call(connection, "echo", still=1) == {"still": 1}
