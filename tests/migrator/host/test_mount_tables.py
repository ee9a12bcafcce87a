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
