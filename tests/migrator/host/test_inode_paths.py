# SPDX-License-Identifier: GPL-2.0-or-later
"""Files are looked up by what is known of them. On btrfs and on cgroups: tests/rig/test_systemd_guest.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from migrator.host import inode_paths


@pytest.fixture
def looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are, in a tree of three directories."""
    for folder in ("", "a", "a/b"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / f"{Path(folder).name or 'top'}.events").touch()
    names, real = [], os.stat

    def noted(path: str, **how: object) -> os.stat_result:
        if "dir_fd" in how and str(path).endswith(".events"):
            names.append(str(path))
        return real(path, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", noted)
    return names


def test_every_file_is_looked_up(tmp_path: Path, looked_up: list[str]) -> None:
    inode_paths.look_up(str(tmp_path), 10, lambda path: False)
    assert set(looked_up) == {"top.events", "a.events", "b.events"}


def test_no_more_than_so_many(tmp_path: Path, looked_up: list[str]) -> None:
    inode_paths.look_up(str(tmp_path), 2, lambda path: False)
    assert set(looked_up) == {"top.events", "a.events"}


def test_what_may_wait_is_not_entered(tmp_path: Path, looked_up: list[str]) -> None:
    inode_paths.look_up(str(tmp_path), 10, lambda path: path == str(tmp_path / "a"))
    assert set(looked_up) == {"top.events"}


def test_no_other_file_system_is_asked(tmp_path: Path) -> None:
    folder = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert inode_paths.paths(folder, 1) == []
    finally:
        os.close(folder)
