# SPDX-License-Identifier: GPL-2.0-or-later
"""Files to be sent, in many small segments, over a connection that may be cut."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest

from migrator.errors import MigratorError
from migrator.errors.connection import ConnectionLost
from migrator.transfer import frames, receiver, segments, sender, spool, stream_reader
from migrator.transfer.messages import Transfer
from migrator.transfer.sender import SourceFile, TransferResult, send_files
from tests.migrator.transfer.spools import handlers
from tests.migrator.wire import CutStream, connected, ends_orderly

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
