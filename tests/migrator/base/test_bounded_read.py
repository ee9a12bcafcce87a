# SPDX-License-Identifier: GPL-2.0-or-later
"""Notes and logs that another host has made large."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from migrator.base import bounded_read
from migrator.criu import cgroup_image, criu_dump, restore, terminals
from migrator.criu.protocol_buffers import fields, varint


def test_no_more_than_the_limit_is_read(tmp_path: Path) -> None:
    (tmp_path / "note").write_bytes(b"x" * 100)
    assert bounded_read.read(tmp_path / "note", 100) == b"x" * 100
    with pytest.raises(ValueError, match="note is larger than 99 bytes"):
        bounded_read.read(tmp_path / "note", 99)


def test_the_end_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("one\ntwo\nthree\n")
    assert bounded_read.tail(log, 100) == "one\ntwo\nthree\n"
    assert bounded_read.tail(log, 10) == bounded_read.tail(log, 12) == "two\nthree\n"
    log.write_bytes(b"x" * 50)
    assert len(bounded_read.tail(log, 10)) <= 10


def test_a_note_beside_the_images(tmp_path: Path) -> None:
    assert restore._noted(tmp_path, terminals.RECORD) == ""
    (tmp_path / terminals.RECORD).touch()
    os.truncate(tmp_path / terminals.RECORD, restore.NOTE_LIMIT + 1)
    with pytest.raises(ValueError, match="larger"):
        restore._noted(tmp_path, terminals.RECORD)


def test_the_reason_is_at_the_end_of_a_log_of_any_size(tmp_path: Path) -> None:
    log = tmp_path / "restore.log"
    line = "Error (x.c:1): early\n"
    log.write_text(line * (bounded_read.LOG_LIMIT // len(line) + 10) + "Error (x.c:2): late\n")
    assert criu_dump.reason(log).endswith("late")
    log.write_text("Error (x.c:2): too early\n" + "x" * bounded_read.LOG_LIMIT)
    assert criu_dump.reason(log) == ""


@pytest.mark.parametrize("length", [10, 100_000])
def test_a_number_ends(length: int) -> None:
    with pytest.raises(ValueError, match="longer"):
        list(fields(b"\x12" + b"\xff" * length + b"\x01"))


def test_a_large_image_of_cgroups(tmp_path: Path) -> None:
    path = tmp_path / cgroup_image.IMAGE
    path.touch()
    os.truncate(path, cgroup_image.LIMIT + 1)
    with pytest.raises(ValueError, match="larger"):
        cgroup_image.leave_controllers(tmp_path)


def test_cgroups_in_each_other_without_end() -> None:
    record = b""
    for _ in range(2000):
        record = varint(2 << 3 | 2) + varint(len(record)) + record
    with pytest.raises(ValueError, match="deep"):
        cgroup_image.without_controllers(cgroup_image._HEAD + len(record).to_bytes(4, "little") + record)
