# SPDX-License-Identifier: GPL-2.0-or-later
"""Files sent from one end to the other: whole, cut and resumed, damaged, given up, held back."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from migrator.errors import MigratorError
from migrator.errors.connection import ConnectionLost
from migrator.errors.containers import InvalidName
from migrator.errors.data import NoSpace, ReadFailed, SegmentDamaged, WriteFailed
from migrator.errors.this_host import CommandFailed
from migrator.transfer import frames, receiver, segments, sender, spool, stream_reader
from migrator.transfer.frames import Kind
from migrator.transfer.messages import Transfer
from migrator.transfer.rpc import Connection, Takeover
from migrator.transfer.sender import SourceFile, TransferResult, send_files
from migrator.transfer.stream import FileStream
from tests.effort import tries
from tests.migrator.transfer.spools import arrived, handlers
from tests.migrator.wire import TIMEOUT, CutStream, call, connected, ends_orderly

SMALL = 64 * 1024  # what a segment is cut to in tests that want many of them


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (frames, segments, receiver, stream_reader, sender, spool):
        monkeypatch.setattr(module, "SEGMENT_MAX", SMALL)


def file(name: str, data: bytes, *, sized: bool = True) -> SourceFile:
    return SourceFile(name, io.BytesIO(data), len(data) if sized else None)


def mixed(size: int) -> bytes:
    """Half noise, half text."""
    return b"".join(os.urandom(1024) + b"page %08d" % at * 78 for at in range(size // 2048 + 1))[:size]


# --- Whole ---


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("sized", [True, False])
def test_whole_files(tmp_path: Path, durable: bool, sized: bool) -> None:
    limit = frames.SEGMENT_MAX
    contents = {f"f{size}": mixed(size) for size in (0, 1, limit - 1, limit, limit + 1, 3 * limit + 7)}
    with connected(handlers(tmp_path / "spool", durable=durable)) as (connection, _):
        result = send_files(connection, Transfer(), [file(name, data, sized=sized) for name, data in contents.items()])
        assert call(connection, "echo", still=1) == {"still": 1}
    total = sum(map(len, contents.values()))
    assert (result.raw_bytes, result.resumed_bytes) == (total, 0)
    assert 0 < result.wire_bytes < total + 1000
    for name, data in contents.items():
        assert arrived(tmp_path / "spool" / name) == data
        assert spool.is_complete(tmp_path / "spool" / name)


def test_many_small_files_cost_no_round_trip_each() -> None:
    """All of them are sent before anything has been acknowledged."""
    seen: list[Kind] = []

    def acknowledge_at_the_end(connection: Connection) -> dict[str, Any]:
        while (kind := connection.receive().kind) is not Kind.END:
            seen.append(kind)
        connection.send(Kind.ACK, receiver.ACK.pack(2000))
        return {}

    contents = [file(f"core-{number}.img", b"x" * (number + 1)) for number in range(1000)]
    with connected({"transfer": lambda _: Takeover({"held": {}}, acknowledge_at_the_end)}) as (connection, _):
        send_files(connection, Transfer(), contents)
    assert seen == [Kind.FILE, Kind.SEGMENT, Kind.FILE_END] * 1000


@settings(max_examples=tries(15, 200), deadline=None)
@given(st.dictionaries(st.sampled_from(["0", "1", "2", "-1", "x", "²"]), st.integers(-1, 3) | st.text(max_size=2)),
       st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.binary(max_size=5)), max_size=3),
       st.lists(st.sampled_from([*Kind]), max_size=4), st.integers(-1, 9))  # fmt: skip
def test_a_sender_survives_any_destination(counts: dict[str, Any], digests: list[tuple[int, int, bytes]],
                                           kinds: list[Kind], acknowledged: int) -> None:
    def nonsense(connection: Connection) -> dict[str, Any]:
        for number, count, tail in digests:
            connection.send(Kind.HELD, struct.pack("!I", number), bytes(32 * count), tail)
        for kind in kinds:
            connection.send(kind, receiver.ACK.pack(max(0, acknowledged)) if kind is Kind.ACK else b"")
        while connection.receive().kind not in (Kind.END, Kind.ABORT):
            pass
        return {}

    files = [file("a", b"a" * 100), file("b", b"")]
    takeover = Takeover({"held": counts}, nonsense)
    with connected({"transfer": lambda _: takeover}) as (connection, server):
        connection.adopt_timeout(0.05, 0.05)  # it may keep us waiting
        with contextlib.suppress(MigratorError):
            send_files(connection, Transfer(), files)
        connection.close()
        server.join()
    assert ends_orderly(server.error)


def test_paths_are_opened_when_their_turn_comes(tmp_path: Path) -> None:
    files = []
    for number in range(240):  # more than may be open at once: the receiver has two descriptors of up to 34
        (tmp_path / f"in{number}").write_bytes(b"%d" % number)
        files.append(SourceFile(f"in{number}", tmp_path / f"in{number}", len(str(number))))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 100, hard))  # noqa: PTH208
    try:
        with connected(handlers(tmp_path / "spool")) as (connection, _):
            send_files(connection, Transfer(), files)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert arrived(tmp_path / "spool/in239") == b"239"


def test_reader_that_gives_little_at_a_time(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    data = mixed(300_000)

    def trickle() -> None:
        with os.fdopen(write_end, "wb", buffering=0) as pipe:
            for at in range(0, len(data), 7001):
                pipe.write(data[at : at + 7001])

    thread = threading.Thread(target=trickle)
    thread.start()
    with connected(handlers(tmp_path)) as (connection, _), os.fdopen(read_end, "rb", buffering=0) as pipe:
        send_files(connection, Transfer(), [SourceFile("disk-1", pipe)])
    thread.join()
    assert arrived(tmp_path / "disk-1") == data


def test_progress(tmp_path: Path, small_segments: None) -> None:
    data = mixed(20 * frames.SEGMENT_MAX)
    seen: list[int] = []
    with connected(handlers(tmp_path)) as (connection, _):
        send_files(connection, Transfer(), [file("disk-1", data)], progress=lambda done, _: seen.append(done))
    assert seen == sorted(seen)
    assert seen[-1] == len(data)


def test_compresses_where_it_pays(tmp_path: Path, small_segments: None) -> None:
    with connected(handlers(tmp_path)) as (connection, _):
        files = [file("text", b"text and more text " * 500_000)]
        text = send_files(connection, Transfer(), files, bytes_per_second=1_000_000)
        noise = send_files(connection, Transfer(), [file("noise", os.urandom(4_000_000))])
    assert text.wire_bytes < text.raw_bytes / 4
    assert noise.raw_bytes < noise.wire_bytes < noise.raw_bytes * 1.01
    assert arrived(tmp_path / "text") == b"text and more text " * 500_000


def test_rate_is_kept() -> None:
    now = 1000.0
    pace = sender._Pace(2_000_000, lambda: now)
    for size in [SMALL] * 100 + [5 * SMALL] * 20:
        now += 0.001 + pace.after(size)
    assert now - 1000 == pytest.approx(200 * SMALL / 2_000_000, abs=0.2)
    now += 60  # what was not used while nothing was to be sent is not made up for
    begun = now
    for _ in range(100):
        now += pace.after(SMALL)
    assert now - begun == pytest.approx(100 * SMALL / 2_000_000, abs=0.2)
    assert sender._Pace(None, lambda: now).after(1 << 40) == 0.0


def test_all_that_is_sent_is_paced(tmp_path: Path, small_segments: None, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    monkeypatch.setattr(sender._Pace, "after", lambda _, size: sent.append(size) or 0.0)  # type: ignore[func-returns-value]
    with connected(handlers(tmp_path)) as (connection, _):
        result = send_files(connection, Transfer(), [file("noise", os.urandom(20 * SMALL))], bytes_per_second=1)
    assert result.wire_bytes > 20 * SMALL
    assert result.wire_bytes - sum(sent) < 100, "all but the last frame, which nothing waits for"


# --- Cut and resumed ---


def attempt(directory: Path, files: list[SourceFile], stream: CutStream | None = None,
            *, durable: bool = False) -> TransferResult | MigratorError:
    outcome: TransferResult | MigratorError
    with connected(handlers(directory, durable=durable), stream) as (connection, server):
        try:
            outcome = send_files(connection, Transfer(), files)
        except MigratorError as error:
            outcome = error
        if not isinstance(outcome, ConnectionLost):  # else it was cut, and the server ends by itself
            connection.close()
        server.join()
        assert ends_orderly(server.error)
    return outcome


@settings(max_examples=tries(12, 200), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(400, 900_000), st.booleans(), st.lists(st.integers(0, 300_000), min_size=1, max_size=4))
def test_cut_anywhere_and_resumed(tmp_path_factory: pytest.TempPathFactory, small_segments: None, limit: int,
                                  durable: bool, sizes: list[int]) -> None:
    directory = tmp_path_factory.mktemp("spool")
    contents = {f"disk-{number}": os.urandom(size) for number, size in enumerate(sizes)}
    first = attempt(directory, [file(*item) for item in contents.items()], CutStream(limit=limit), durable=durable)
    assert isinstance(first, TransferResult | ConnectionLost)
    again = attempt(directory, [file(*item) for item in contents.items()], durable=durable)
    assert isinstance(again, TransferResult)
    for name, data in contents.items():
        assert arrived(directory / name) == data
    # A cut costs at most the segments that were on their way: all that was acknowledged is not sent again.
    assert again.wire_bytes < sum(sizes) - again.resumed_bytes + 1000 * (len(sizes) + 1)


def test_cut_costs_little(tmp_path: Path, small_segments: None) -> None:
    data = os.urandom(40 * SMALL)
    assert isinstance(attempt(tmp_path, [file("disk-1", data)], CutStream(limit=30 * SMALL)), ConnectionLost)
    again = attempt(tmp_path, [file("disk-1", data)])
    assert isinstance(again, TransferResult)
    assert again.resumed_bytes >= 27 * SMALL
    assert arrived(tmp_path / "disk-1") == data


def test_sending_again_what_is_there_sends_nothing(tmp_path: Path, small_segments: None) -> None:
    data = os.urandom(10 * SMALL + 5)
    attempt(tmp_path, [file("disk-1", data)])
    again = attempt(tmp_path, [file("disk-1", data)])
    assert isinstance(again, TransferResult)
    assert again.resumed_bytes == len(data)
    assert again.wire_bytes < 200
    assert arrived(tmp_path / "disk-1") == data


@pytest.mark.parametrize("changed", [0, 3 * SMALL, 10 * SMALL + 4])
def test_other_data_replaces_what_is_there_from_the_difference_on(tmp_path: Path, small_segments: None,
                                                                 capsys: pytest.CaptureFixture[str],
                                                                 changed: int) -> None:
    data = bytearray(os.urandom(10 * SMALL + 5))
    attempt(tmp_path, [file("disk-1", bytes(data))])
    attempt(tmp_path, [file("disk-1", bytes(data))])
    assert not capsys.readouterr().err
    data[changed] ^= 1
    again = attempt(tmp_path, [file("disk-1", bytes(data))])
    assert isinstance(again, TransferResult)
    assert again.resumed_bytes == changed // SMALL * SMALL
    assert arrived(tmp_path / "disk-1") == data
    assert "disk-1 differs from what is being sent" in capsys.readouterr().err


@pytest.mark.parametrize("length", [0, 1, SMALL, 4 * SMALL + 9])
def test_shorter_data_replaces_longer(tmp_path: Path, small_segments: None, length: int) -> None:
    data = os.urandom(10 * SMALL + 5)
    attempt(tmp_path, [file("disk-1", data)])
    attempt(tmp_path, [file("disk-1", data[:length])])
    assert arrived(tmp_path / "disk-1") == data[:length]
    attempt(tmp_path, [file("disk-1", data)])
    assert arrived(tmp_path / "disk-1") == data


@settings(max_examples=tries(12, 200), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_happened_to_the_spool_sending_again_repairs_it(
        tmp_path_factory: pytest.TempPathFactory, small_segments: None, data: st.DataObject) -> None:
    directory = tmp_path_factory.mktemp("spool")
    content = os.urandom(5 * SMALL + 5)
    attempt(directory, [file("disk-1", content)])
    for path in (directory / "disk-1", directory / "disk-1.index"):
        match data.draw(st.sampled_from(["leave", "truncate", "append", "remove"])):
            case "truncate":
                os.truncate(path, data.draw(st.integers(0, path.stat().st_size)))
            case "append":
                with path.open("ab") as opened:
                    opened.write(data.draw(st.binary(max_size=100)))
            case "remove":
                path.unlink()
    again = attempt(directory, [file("disk-1", content)])
    assert isinstance(again, TransferResult)
    assert arrived(directory / "disk-1") == content


def test_damage_on_the_disk_is_found_and_sent_again(tmp_path: Path, small_segments: None) -> None:
    data = os.urandom(5 * SMALL)
    attempt(tmp_path, [file("disk-1", data)])
    with (tmp_path / "disk-1").open("r+b") as opened:
        opened.seek(3 * SMALL + 17)
        opened.write(b"damage")
    with pytest.raises(SegmentDamaged):
        spool.verify(tmp_path / "disk-1")
    again = attempt(tmp_path, [file("disk-1", data)])
    assert isinstance(again, TransferResult)
    assert again.resumed_bytes == 3 * SMALL
    assert arrived(tmp_path / "disk-1") == data


def test_killed_receiver(tmp_path: Path) -> None:
    """A process that is killed at once leaves nothing that is not so: what was acknowledged is there."""
    data = os.urandom(20 << 20)
    code = (
        "import sys; from pathlib import Path;"
        "from migrator.transfer import messages, rpc, serve_requests, spool, wire_codec;"
        "from migrator.transfer.stream import *; c = rpc.Connection(FileStream.from_stdio()); c.hello();"
        "files = lambda f: wire_codec.decoded(messages.Transfer, f).files;"
        "serve_requests.serve(c, {'transfer': lambda f: spool.receive(Path(sys.argv[1]), files(f))})"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin and process.stdout
    seen: list[int] = []
    killed = threading.Event()

    class Source(io.BytesIO):
        """Does not come to its end before the receiver has been killed."""

        def readinto(self, buffer: Any) -> int:
            if self.tell() > len(data) // 2:
                killed.wait()
            return super().readinto(buffer)

    def progress(done: int, _resumed: int) -> None:
        seen.append(done)
        if done:
            process.kill()
            killed.set()

    stream = FileStream(os.dup(process.stdout.fileno()), os.dup(process.stdin.fileno()))
    with process, Connection(stream, timeout=TIMEOUT) as connection:
        connection.hello()
        with pytest.raises(ConnectionLost):
            send_files(connection, Transfer(), [SourceFile("disk-1", Source(data), len(data))], progress=progress)
    again = attempt(tmp_path, [file("disk-1", data)])
    assert isinstance(again, TransferResult)
    assert again.resumed_bytes >= seen[-1] > 0
    assert arrived(tmp_path / "disk-1") == data


# --- Damaged on the way ---


@settings(max_examples=tries(15, 200), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 5 * SMALL))
def test_flipped_byte_is_never_taken_for_good(tmp_path_factory: pytest.TempPathFactory, small_segments: None,
                                              flip: int) -> None:
    directory = tmp_path_factory.mktemp("spool")
    data = os.urandom(4 * SMALL)
    ours_name = "disk-1"
    try:
        # A greeting may have become longer than what comes, and is waited for.
        with connected(handlers(directory), CutStream(flip=flip), patience=0.5) as (connection, server):
            send_files(connection, Transfer(), [file(ours_name, data)])
    except MigratorError:
        pass
    assert ends_orderly(server.error)
    for path in directory.glob("disk*[!x]"):  # the name itself may be what was changed
        if spool.is_complete(path):
            assert arrived(path) == data


# --- Given up ---


class Dying(io.RawIOBase):
    """A reader that fails after so many bytes, as `btrfs send` does when it dies."""

    def __init__(self, length: int, error: BaseException) -> None:
        self._left = length
        self._error = error

    def readinto(self, buffer: Any) -> int:
        if not self._left:
            raise self._error
        count = min(len(buffer), self._left)
        buffer[:count] = os.urandom(count)
        self._left -= count
        return count


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


# --- No room ---


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


# --- Nothing is left ---


def test_no_threads_and_descriptors_are_left(tmp_path: Path) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    gc.collect()
    threads_before, descriptors_before = threading.active_count(), descriptors()
    for _ in range(3):
        attempt(tmp_path, [file("disk-1", os.urandom(10_000))])
        attempt(tmp_path, [SourceFile("disk-1", Dying(10_000_000, OSError(5, "no")))])
        attempt(tmp_path, [file("disk-1", os.urandom(9_000_000))], CutStream(limit=5_000_000))
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline and (threading.active_count() > threads_before
                                           or descriptors() > descriptors_before):
        time.sleep(0.05)
    assert threading.active_count() <= threads_before
    assert descriptors() <= descriptors_before
