# SPDX-License-Identifier: GPL-2.0-or-later
"""Files sent from one end to the other, whole, and at the rate that they may have."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import contextlib
import gc
import os
import resource
import struct
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from migrator.errors import MigratorError
from migrator.transfer import frames, receiver, sender, spool
from migrator.transfer.frames import Kind
from migrator.transfer.messages import Transfer
from migrator.transfer.rpc import Connection, Takeover
from migrator.transfer.sender import SourceFile, send_files
from tests.effort import tries
from tests.migrator.transfer.sent_files import SMALL, Dying, attempt, file, mixed, small_segments  # noqa: F401 -- a fixture
from tests.migrator.transfer.spools import arrived, handlers
from tests.migrator.wire import TIMEOUT, CutStream, call, connected, ends_orderly

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
