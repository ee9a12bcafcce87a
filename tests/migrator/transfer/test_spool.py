# SPDX-License-Identifier: GPL-2.0-or-later
"""What lies in a spool: names, the index, checking and repairing, space; and a receiver that is sent nonsense."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from migrator.errors import MigratorError
from migrator.errors.connection import ProtocolError
from migrator.errors.containers import InvalidName
from migrator.errors.data import NoSpace, SegmentDamaged
from migrator.errors.this_host import Busy
from migrator.transfer import segments, spool
from migrator.transfer.frames import SEGMENT_MAX, Kind
from migrator.transfer.messages import FILES_MAX
from migrator.transfer.rpc import Connection
from migrator.transfer.segments import End, Index, Segment
from tests.effort import tries
from tests.migrator.transfer.spools import FIRST, cut, end_body, segment_body, store
from tests.migrator.wire import call, connected, ends_orderly, listed

MIB = 1 << 20


def test_the_digest_of_a_stream_is_over_those_of_its_segments_alone() -> None:
    """It goes to the other host, which may have another version."""
    pieces = [segments.digest_of(piece) for piece in (b"one", b"two")]
    assert segments.digest_over([Segment(3, piece) for piece in pieces]) == segments.digest_of(b"".join(pieces))


# --- Names ---


@pytest.mark.parametrize("name", ["disk-1", "pages-1.img", "tmpfs-dev-42.tar.gz.img", "A", "a" * 101, "0..", "index"])
def test_good_names(name: str) -> None:
    assert segments.check_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "/x", "a/b", ".hidden", "-f", "a\n", "a\x00", "a b", "ü",
                                  "a" * 102, "disk-1.index", ".receiving"])  # fmt: skip
def test_bad_names(name: str) -> None:
    with pytest.raises(InvalidName):
        segments.check_name(name)


# --- The index ---

digests = st.binary(min_size=32, max_size=32)
indexes = st.builds(
    lambda full, last: [Segment(SEGMENT_MAX, digest) for digest in full] + last,
    st.lists(digests, max_size=4),
    st.lists(st.builds(Segment, st.integers(1, SEGMENT_MAX), digests), max_size=1),
)


@given(indexes)
def test_index_is_read_as_it_was_written(found: list[Segment]) -> None:
    data = b"".join(map(segments.line, found))
    assert len(data) == segments.lines_size(len(found))
    assert segments.parse(data) == Index(found, None)
    end = segments.whole(found)
    assert segments.parse(data + segments.last_line(end)) == Index(found, end)
    assert segments.parse_last((data + segments.last_line(end))[-segments.LAST_SIZE :]) == end.length


@given(indexes, st.data())
def test_torn_index_is_read_up_to_where_it_is_torn(found: list[Segment], data: st.DataObject) -> None:
    whole = b"".join(map(segments.line, found)) + segments.last_line(segments.whole(found))
    length = data.draw(st.integers(0, len(whole) - 1))
    garbage = data.draw(st.binary(max_size=20))
    index = segments.parse(whole[:length] + garbage)
    assert index.segments[: length // 76] == found[: length // 76]
    assert index.end is None or (whole[:length] + garbage).startswith(whole)


@pytest.mark.parametrize("lines", [
    segments.line(Segment(0, bytes(32))),
    segments.line(Segment(SEGMENT_MAX + 1, bytes(32))),
    segments.line(Segment(1, bytes(32))).upper(),
    segments.last_line(End(0, bytes(32))),
    segments.last_line(End(1, segments.digest_over([]))),
])  # fmt: skip
def test_lines_that_make_no_sense(lines: bytes) -> None:
    assert segments.parse(lines) == Index([], None)


def test_only_the_last_segment_may_be_short() -> None:
    short = Segment(5, bytes(32))
    assert segments.parse(segments.line(short) * 2) == Index([short], None)


@given(st.binary(max_size=400))
def test_any_bytes_as_an_index(data: bytes) -> None:
    index = segments.parse(data)
    assert index.length >= len(index.segments)


# --- Reading back ---


@pytest.mark.parametrize("size", [0, 1, SEGMENT_MAX - 1, SEGMENT_MAX, SEGMENT_MAX + 1, 2 * SEGMENT_MAX + 5])
def test_good_stream(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    store(tmp_path / "disk-1", data)
    assert spool.is_complete(tmp_path / "disk-1")
    assert b"".join(bytes(piece) for piece in spool.verified(tmp_path / "disk-1")) == data
    spool.verify(tmp_path / "disk-1")


@pytest.mark.parametrize("at", [0, SEGMENT_MAX - 1, SEGMENT_MAX, 3 * SEGMENT_MAX + 99])
def test_flipped_byte(tmp_path: Path, at: int) -> None:
    path = tmp_path / "disk-1"
    for check in (lambda: spool.verify(path), lambda: list(spool.verified(path))):
        store(path, os.urandom(3 * SEGMENT_MAX + 100))
        with path.open("r+b") as file:
            file.seek(at)
            old = file.read(1)[0]
            file.seek(at)
            file.write(bytes([old ^ 1]))
        with pytest.raises(SegmentDamaged) as caught:
            check()
        assert caught.value.fields["segment"] == at // SEGMENT_MAX
        # The index does not vouch for it any more, so that sending again brings it.
        assert not spool.is_complete(path)
        assert len(segments.parse((tmp_path / "disk-1.index").read_bytes()).segments) == at // SEGMENT_MAX


def test_damage_is_found_before_the_segment_is_handed_out(tmp_path: Path) -> None:
    path = tmp_path / "disk-1"
    data = os.urandom(2 * SEGMENT_MAX)
    store(path, data)
    os.truncate(path, len(data) - 1)
    handed_out = []
    with pytest.raises(SegmentDamaged):
        for piece in spool.verified(path):
            handed_out.append(bytes(piece))
    assert handed_out == cut(data)[:1]


@pytest.mark.parametrize("broken", ["no index", "not complete", "torn", "longer", "shorter", "not there"])
def test_incomplete_stream(tmp_path: Path, broken: str) -> None:
    path, index = tmp_path / "disk-1", tmp_path / "disk-1.index"
    store(path, os.urandom(1000), complete=broken != "not complete")
    match broken:
        case "no index":
            index.unlink()
        case "torn":
            os.truncate(index, index.stat().st_size - 1)
        case "longer":
            with path.open("ab") as file:
                file.write(b"x")
        case "shorter":
            os.truncate(path, 999)
        case "not there":
            path.unlink()
    assert not spool.is_complete(path)
    if broken not in ("longer", "not there"):
        with pytest.raises(SegmentDamaged):
            spool.verify(path)


def test_links_are_not_followed(tmp_path: Path) -> None:
    store(tmp_path / "real", b"data")
    (tmp_path / "disk-1").symlink_to("real")
    (tmp_path / "disk-1.index").symlink_to("real.index")
    with pytest.raises(OSError, match="symbolic links"):
        spool.verify(tmp_path / "disk-1")


def test_drop(tmp_path: Path) -> None:
    store(tmp_path / "disk-1", b"data")
    spool.drop(tmp_path / "disk-1")
    spool.drop(tmp_path / "disk-1")
    assert not list(tmp_path.iterdir())


def test_many_files_are_verified_at_once(tmp_path: Path) -> None:
    paths = [tmp_path / f"core-{number}.img" for number in range(50)]
    for path in paths:
        store(path, path.name.encode())
    spool.verify(*paths)
    paths[30].write_bytes(b"X" * len(paths[30].name))
    with pytest.raises(SegmentDamaged, match=r"core-30\.img"):
        spool.verify(*paths)


# --- Space ---


def test_space(tmp_path: Path) -> None:
    spool.check_space(tmp_path, 0)
    with pytest.raises(NoSpace) as caught:
        spool.check_space(tmp_path, 1 << 58, what="the disk of c1")
    assert "needed for the disk of c1" in caught.value.message


def test_transfer_that_cannot_fit_is_refused_before_it_begins(tmp_path: Path) -> None:
    with connected(handlers(tmp_path / "spool")) as (connection, _):
        with pytest.raises(NoSpace):
            call(connection, "transfer", files=[{"name": "disk-1", "size": 1 << 58}])
        assert call(connection, "echo", still=1) == {"still": 1}


# --- What a receiver is told and sent ---


def handlers(directory: Path, durable: bool = True) -> dict[str, Any]:
    return {
        "transfer": lambda fields: spool.receive(directory, listed(fields["files"]), durable=durable),
        "echo": lambda fields: fields,
    }


@pytest.mark.parametrize("files, error", [
    (None, ProtocolError), ([], ProtocolError), ("disk-1", ProtocolError), ([1], ProtocolError), ([{}], ProtocolError),
    ([{"name": "a", "size": -1}], ProtocolError), ([{"name": "a", "size": "1"}], ProtocolError),
    ([{"name": "a", "size": 1 << 70}], ProtocolError), ([{"name": "a"}, {"name": "a"}], ProtocolError),
    ([{"name": f"a{number}"} for number in range(FILES_MAX + 1)], ProtocolError),
    ([{"name": "../a"}], InvalidName), ([{"name": "a.index"}], InvalidName), ([{"name": "x" * 5000}], InvalidName),
])  # fmt: skip
def test_bad_lists_of_files(tmp_path: Path, files: Any, error: type[MigratorError]) -> None:
    with connected(handlers(tmp_path / "spool")) as (connection, _):
        with pytest.raises(error) as caught:
            call(connection, "transfer", files=files)
        assert len(str(caught.value)) < 1000
        assert call(connection, "echo", still=1) == {"still": 1}
    assert not (tmp_path / "spool").exists()


def test_one_receiver_at_a_time(tmp_path: Path) -> None:
    with connected(handlers(tmp_path)) as (first, _), connected(handlers(tmp_path)) as (second, _):
        call(first, "transfer", files=[{"name": "disk-1"}])
        with pytest.raises(Busy, match=f"process {os.getpid()}"):
            call(second, "transfer", files=[{"name": "disk-1"}])
    with connected(handlers(tmp_path)) as (third, _):
        call(third, "transfer", files=[{"name": "disk-1"}])


def test_a_name_that_has_no_place_there_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    with connected({"transfer": lambda fields: spool.receive(folder, listed(fields["files"]),
                                                             accepts="disk-1".__eq__)}) as (connection, _):
        with pytest.raises(ProtocolError, match="a file other, which does not belong there"):
            call(connection, "transfer", files=[{"name": "disk-1"}, {"name": "other"}])
        assert not folder.exists()
        call(connection, "transfer", files=[{"name": "disk-1"}])
        assert folder.is_dir()


def test_the_lock_says_who_has_it_now(tmp_path: Path) -> None:
    """Also where the one before had a longer id."""
    (tmp_path / spool.LOCK_NAME).write_text("4194303000\n")
    with spool._lock(tmp_path):
        assert (tmp_path / spool.LOCK_NAME).read_text() == f"{os.getpid()}\n"
        before = len(list(Path("/proc/self/fd").iterdir()))
        with pytest.raises(Busy, match=f"process {os.getpid()}"):
            spool._lock(tmp_path)
        assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_links_in_the_spool_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    (tmp_path / "elsewhere").write_bytes(b"precious")
    (tmp_path / "spool/disk-1").symlink_to(tmp_path / "elsewhere")
    with connected(handlers(tmp_path / "spool")) as (connection, _), pytest.raises(MigratorError):
        call(connection, "transfer", files=[{"name": "disk-1"}])
    assert (tmp_path / "elsewhere").read_bytes() == b"precious"


BOMB = zstandard.ZstdCompressor().compress(bytes(64 * MIB))
UNKNOWN_SIZE = zstandard.ZstdCompressor(write_content_size=False).compress(b"data")

NONSENSE = {
    "segment outside of a file": [(Kind.SEGMENT, segment_body(b"data"), 0)],
    "end outside of a file": [(Kind.FILE_END, end_body(), 0)],
    "files out of order": [(Kind.FILE, b'{"file":1,"keep":0}', 0)],
    "no such file": [FIRST, (Kind.FILE_END, end_body(), 0), (Kind.FILE, b'{"file":1,"keep":0}', 0)],
    "a file in a file": [FIRST, FIRST],
    "keeps what is not there": [(Kind.FILE, b'{"file":0,"keep":1}', 0)],
    "keeps less than nothing": [(Kind.FILE, b'{"file":0,"keep":-1}', 0)],
    "no file number": [(Kind.FILE, b"{}", 0)],
    "no segment": [FIRST, (Kind.SEGMENT, b"x", 0)],
    "empty segment": [FIRST, (Kind.SEGMENT, segment_body(b""), 0)],
    "unknown flag": [FIRST, (Kind.SEGMENT, segment_body(b"data"), 2)],
    "short segment in the middle": [FIRST, *[(Kind.SEGMENT, segment_body(b"data"), 0)] * 2],
    "ends too early": [FIRST, (Kind.SEGMENT, segment_body(b"data"), 0)],
}
DAMAGED = {
    "digest": [FIRST, (Kind.SEGMENT, segment_body(b"data", payload=b"Data"), 0)],
    "length": [FIRST, (Kind.SEGMENT, segment_body(b"data", length=5), 0)],
    "no zstd": [FIRST, (Kind.SEGMENT, segment_body(b"data"), 1)],
    "zstd of another length": [FIRST, (Kind.SEGMENT, segment_body(b"data", length=SEGMENT_MAX, payload=BOMB), 1)],
    "zstd of unknown length": [FIRST, (Kind.SEGMENT, segment_body(b"data", payload=UNKNOWN_SIZE), 1)],
    "end": [FIRST, (Kind.SEGMENT, segment_body(b"data"), 0), (Kind.FILE_END, end_body(b"Data"), 0)],
    "short end": [FIRST, (Kind.FILE_END, end_body()[:-1], 0)],
}  # fmt: skip


def send_frames(connection: Connection, frames: list[tuple[Kind, bytes, int]]) -> dict[str, Any]:
    request = connection.request("transfer", {"files": [{"name": "disk-1"}]})
    connection.answer(request)
    for kind, body, flags in frames:
        connection.send(kind, body, flags=flags)
    connection.send(Kind.END)
    while (frame := connection.receive()).kind in (Kind.ACK, Kind.STOP):
        pass
    return connection.answer_in(frame, request)


def test_frames_by_hand(tmp_path: Path) -> None:
    frames = [FIRST, (Kind.SEGMENT, segment_body(b"data"), 0), (Kind.FILE_END, end_body(b"data"), 0)]
    with connected(handlers(tmp_path)) as (connection, _):
        reply = send_frames(connection, frames)
    assert reply["files"]["disk-1"]["bytes"] == 4
    assert b"".join(map(bytes, spool.verified(tmp_path / "disk-1"))) == b"data"


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_ends_the_connection(tmp_path: Path, name: str) -> None:
    with connected(handlers(tmp_path)) as (connection, server), pytest.raises(MigratorError):
        send_frames(connection, NONSENSE[name])
    assert isinstance(server.error, ProtocolError)
    assert spool.is_complete(tmp_path / "disk-1") == (name == "no such file")  # the one before it had arrived


def test_no_more_comes_than_was_announced(tmp_path: Path) -> None:
    frames = [(Kind.FILE, b'{"file": 0, "keep": 0}', 0), (Kind.SEGMENT, segment_body(b"x" * 11), 0)]
    with connected(handlers(tmp_path)) as (client, _):
        call(client, "transfer", files=[{"name": "disk-1", "size": 10}])
        for kind, body, flags in frames:
            client.send(kind, body, flags=flags)
        assert client.receive().kind is Kind.STOP
    assert not (tmp_path / "disk-1").stat().st_size


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_on_the_way_leaves_the_connection_usable(tmp_path: Path, name: str) -> None:
    tracemalloc.start()
    with connected(handlers(tmp_path)) as (connection, _):
        with pytest.raises(SegmentDamaged):
            send_frames(connection, DAMAGED[name])
        assert call(connection, "echo", still=1) == {"still": 1}
    assert tracemalloc.get_traced_memory()[1] < 40 * MIB
    tracemalloc.stop()
    assert not spool.is_complete(tmp_path / "disk-1")


bodies = st.sampled_from([FIRST[1], b"{}", segment_body(b"data"), end_body(b"data"), end_body(), b""])
kinds = st.sampled_from([Kind.FILE, Kind.SEGMENT, Kind.FILE_END, Kind.ACK, Kind.REPLY])
bulk = st.tuples(kinds, bodies | st.binary(max_size=80), st.integers(0, 3))


@settings(max_examples=tries(30, 500), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(bulk, max_size=6), st.booleans())
def test_a_receiver_survives_any_frames(tmp_path: Path, frames: list[tuple[Kind, bytes, int]], durable: bool) -> None:
    with connected(handlers(tmp_path, durable)) as (connection, server), contextlib.suppress(MigratorError):
        send_frames(connection, frames)
    assert ends_orderly(server.error)
    assert {path.name for path in tmp_path.iterdir()} <= {"disk-1", "disk-1.index", ".receiving"}
    with (tmp_path / ".receiving").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go of, whatever happened


def test_files_are_private(tmp_path: Path) -> None:
    os.umask(os.umask(0o022))
    frames = [FIRST, (Kind.FILE_END, end_body(), 0)]
    with connected(handlers(tmp_path / "spool")) as (connection, _):
        send_frames(connection, frames)
    assert (tmp_path / "spool").stat().st_mode & 0o777 == 0o700
    for path in (tmp_path / "spool").iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
