# SPDX-License-Identifier: GPL-2.0-or-later
"""A `btrfs receive` that takes nothing any more, as where its stream makes a FIFO and clones from it.

A program that opens a FIFO, as it would, stands for it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from migrator.base.run import Program
from migrator.errors.this_host import CommandTimeout
from migrator.host import btrfs, no_devices
from migrator.remote.answering import Service
from migrator.transfer.live_import import Behind

PIECES: list[bytes | memoryview] = [os.urandom(1 << 20), memoryview(bytearray(os.urandom(3_000_001))), b"", b"end"]


@pytest.fixture
def receives(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Program]]:
    begun: list[Program] = []
    monkeypatch.setattr(no_devices, "enter", lambda: None)
    yield begun
    assert [each.process.poll() is not None for each in begun] == [True]


def script(monkeypatch: pytest.MonkeyPatch, text: str, path: Path) -> None:
    monkeypatch.setattr(btrfs, "receive_command", lambda _: ["sh", "-c", text, str(path)])


def test_what_stands_at_a_fifo_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                        receives: list[Program]) -> None:
    """Long before the day that a stream may take: its container is locked as long as it is received."""
    script(monkeypatch, 'mkfifo "$0"; read -r line <"$0"', tmp_path / "fifo")
    monkeypatch.setattr(btrfs, "DRAIN_LIMIT", 0.25)
    with pytest.raises(CommandTimeout) as late:
        btrfs.receive(PIECES, tmp_path, limit=20.0, begun=receives.append)
    assert late.value.fields["limit"] == "0.25"


def test_it_gets_every_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, receives: list[Program]) -> None:
    """Also more than its pipe takes, at once and slowly."""
    script(monkeypatch, 'dd bs=1000 count=1 status=none >"$0"; cat >>"$0"', tmp_path / "got")
    btrfs.receive(PIECES, tmp_path, begun=receives.append)
    assert (tmp_path / "got").read_bytes() == b"".join(PIECES)


@pytest.mark.parametrize("ends", [True, False])
def test_with_its_connection_an_import_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: bool) -> None:
    """Only the process that has received a stream knows what came of it, so the next one would begin anew."""
    waited: list[float | None] = []

    def wait(_: Behind, limit: float | None = None) -> bool:
        waited.append(limit)
        return ends

    monkeypatch.setattr(Behind, "wait", wait)
    with contextlib.ExitStack() as stack:
        assert Service(cast("Any", None), stack).import_behind(tmp_path / "disk-1", tmp_path / "target")
        assert waited == []
    assert waited == ([0.0] if ends else [0.0, None])
