# SPDX-License-Identifier: GPL-2.0-or-later
"""What a container has mounted is read up to a limit, however much it makes of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from migrator.host import mount_tables
from migrator.host.mount_tables import MountTables, TooManyMounts


def test_one_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    """It would not fit into memory: a terabyte."""
    table = tmp_path / "mountinfo"
    table.touch()
    os.truncate(table, 1 << 40)
    with pytest.raises(TooManyMounts, match="more is mounted in the container than is read"):
        MountTables().read(str(table))


def test_a_limit_is_reached_and_not_exceeded(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_bytes(b"x" * 9 + b"\xff")
    assert mount_tables.read(str(table), 10) == b"x" * 9 + b"\xff"
    with pytest.raises(TooManyMounts):
        mount_tables.read(str(table), 9)
    assert MountTables(10).read(os.open(table, os.O_RDONLY)) == "x" * 9 + "\udcff"


def test_several_count_together(tmp_path: Path) -> None:
    """A container has as many mount namespaces as it likes."""
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"x" * 10)
    large.write_bytes(b"x" * 30)
    tables = MountTables(25)
    with pytest.raises(FileNotFoundError):
        tables.read(str(tmp_path / "ended"))
    assert tables.read(str(small)) + tables.read(str(small)) == "x" * 20
    with pytest.raises(TooManyMounts):
        tables.read(str(small))
    tables = MountTables(25)
    for table in (large, small):  # once too much is mounted, nothing is read any more: there may be many like that
        with pytest.raises(TooManyMounts):
            tables.read(str(table))


def test_what_can_be_dumped_can_be_restored() -> None:
    """The same mounts have longer lines there if the paths to what is bound from the host are longer."""
    assert mount_tables.RESTORED_LIMIT >= 4 * mount_tables.LIMIT


@pytest.mark.parametrize("line", ["30 20 0:40 {} /m rw", "30 20 0:40 / {} rw,nosuid"])
def test_a_path_that_nobody_can_mount_at_again(tmp_path: Path, line: str) -> None:
    """Its folders were made one in the other: no system call takes a path that long."""
    table = tmp_path / "mountinfo"
    before = "29 20 0:39 / / rw - btrfs /dev/vda rw\n"
    table.write_text(f"{before}{line.format('/' + 'a' * (mount_tables.PATH_LIMIT - 1))} - tmpfs tmpfs rw\n")
    assert mount_tables.read(str(table))
    table.write_text(f"{before}{line.format('/' + 'a' * mount_tables.PATH_LIMIT)} - tmpfs tmpfs rw\n")
    with pytest.raises(TooManyMounts, match="than is read: the path of a mount is longer than 32 KiB"):
        mount_tables.read(str(table))
    tables = MountTables()
    with pytest.raises(TooManyMounts):
        tables.read(str(table))
    assert tables.left == 0


def test_options_may_be_long(tmp_path: Path) -> None:
    """As those of an overlay with many layers."""
    (tmp_path / "mountinfo").write_text(f"30 20 0:40 / /m rw - overlay overlay rw,lowerdir={'/layer:' * 10_000}\n")
    assert len(mount_tables.read(str(tmp_path / "mountinfo"))) > 2 * mount_tables.PATH_LIMIT


def test_longer_than_any_path_that_can_be_mounted_at() -> None:
    """4096 bytes (PATH_MAX), written in octal, and below another folder at the restore."""
    assert mount_tables.PATH_LIMIT >= 2 * 4 * 4096
