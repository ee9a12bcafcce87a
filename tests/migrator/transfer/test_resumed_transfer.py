# SPDX-License-Identifier: GPL-2.0-or-later
"""Files whose transfer was cut, or that were damaged, sent again: what is there already is not sent twice."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from migrator.errors import MigratorError
from migrator.errors.connection import ConnectionLost
from migrator.errors.data import SegmentDamaged
from migrator.transfer import spool
from migrator.transfer.messages import Transfer
from migrator.transfer.rpc import Connection
from migrator.transfer.sender import SourceFile, TransferResult, send_files
from migrator.transfer.stream import FileStream
from tests.effort import tries
from tests.migrator.transfer.sent_files import SMALL, attempt, file, small_segments  # noqa: F401 -- a fixture
from tests.migrator.transfer.spools import arrived, handlers
from tests.migrator.wire import TIMEOUT, CutStream, connected, ends_orderly


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
