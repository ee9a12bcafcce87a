# SPDX-License-Identifier: GPL-2.0-or-later
"""Folders for memory images: whose are believed to be migrator's, and what becomes of one that stays mounted."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from migrator.base import log, removal
from migrator.record import image_folders

ID = "0badc0de"


@pytest.fixture
def former(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What an older version has left in memory, and next to it something that is not its own."""
    found = tmp_path / "shm"
    for name in (ID, "another"):
        (found / name).mkdir(parents=True)
    found.chmod(0o755)
    monkeypatch.setattr(image_folders, "FORMER_MEMORY", found)
    return found


def test_what_an_older_version_has_left(former: Path) -> None:
    assert image_folders.former_images() == [former / ID]


def test_somebody_elses_folder_is_not_believed(former: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody could make it there, and have root remove what lies behind a link in it."""
    us = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: us + 1)
    assert image_folders.former_images() == []


@pytest.mark.parametrize("how", ["others may write to it", "a link", "a file", "nothing"])
def test_nor_is_anything_that_is_no_folder_of_ours_alone(former: Path, how: str) -> None:
    if how == "others may write to it":
        former.chmod(0o775)
    else:
        moved = former.rename(former.with_name("elsewhere"))
        if how == "a link":
            former.symlink_to(moved)
        elif how == "a file":
            former.write_text("")
    assert image_folders.former_images() == []


@pytest.mark.parametrize(("answer", "said"), [(0, False), (-1, True)])
def test_why_a_mount_of_images_stays_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: int,
                                             said: bool) -> None:
    """Only then: its memory is what a host may lack next."""
    images = tmp_path / ID
    images.mkdir()
    (images / "pages-1.img").write_bytes(b"1")
    told: list[str] = []
    monkeypatch.setattr(log, "verbose", told.append)
    monkeypatch.setattr(removal, "tree", lambda *_, **__: [])  # it cannot remove a mount's own folder
    monkeypatch.setattr(Path, "is_mount", lambda path: path == images)
    monkeypatch.setattr(image_folders, "_libc", lambda: SimpleNamespace(umount2=lambda *_: answer))
    image_folders.remove_images(images)
    assert [f"{images} could not be unmounted" in each for each in told] == ([True] if said else [])
