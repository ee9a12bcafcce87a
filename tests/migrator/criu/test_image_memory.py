# SPDX-License-Identifier: GPL-2.0-or-later
"""How much memory the images of a dump may take, and who may look for them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from migrator.base import log
from migrator.record import image_folders
from migrator.record.migration_paths import Layout
from tests.migrator.layouts import here

__all__ = ["here"]


def test_what_is_available_is_what_the_kernel_calls_so(monkeypatch: pytest.MonkeyPatch) -> None:
    said = ["MemTotal:       16 kB", "MemAvailable:    4 kB", "SwapFree:        8 kB"]
    monkeypatch.setattr(Path, "read_text", lambda _: "\n".join(said))
    assert image_folders.memory_available() == 4096
    del said[1]
    assert image_folders.memory_available() == 0, "so none is used"


def test_nobody_else_sees_whose_images_there_are(here: Layout) -> None:
    """Whatever the mask is: the container's root has to come through, and only has to know the way."""
    before = os.umask(0)
    try:
        for path in here.image_folders():
            image_folders.make_images(path, 1)
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o711
    finally:
        os.umask(before)
        here.drop_images()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_what_is_promised_to_others_is_not_shared_out_again(here: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_folders, "memory_available", lambda: 400 << 20)
    monkeypatch.setattr(image_folders, "memory_promised", lambda: 100 << 20)
    path = here.image_folders()[0]
    try:
        image_folders.make_images(path, 1 << 40)
        found = os.statvfs(path)
        assert found.f_blocks * found.f_frsize == 150 << 20
    finally:
        here.drop_images()


@pytest.mark.parametrize(("room", "size"), [(None, 200), (300, 150), (600, 200)])
def test_no_more_than_the_room_that_is_left_is_counted_on(here: Layout, monkeypatch: pytest.MonkeyPatch,
                                                          room: int | None, size: int) -> None:
    """A limit of our own cgroups, which what is written there counts for."""
    made: list[int] = []
    monkeypatch.setattr(image_folders, "memory_available", lambda: 400 << 20)
    monkeypatch.setattr(image_folders, "memory_promised", lambda: 0)
    monkeypatch.setattr(image_folders, "_mount", lambda _, size: made.append(size))
    path = here.image_folders()[0]
    image_folders.make_images(path, 1 << 40, None if room is None else room << 20)
    path.rmdir()
    assert made == [size << 20]


def test_why_there_is_no_tmpfs_is_said(here: Layout, monkeypatch: pytest.MonkeyPatch,
                                       capfd: pytest.CaptureFixture[str]) -> None:
    """A plain folder does then."""
    monkeypatch.setattr(image_folders, "INODES", "nonsense")
    monkeypatch.setattr(log, "level", log.Level.VERBOSE)
    path = here.image_folders()[0]
    image_folders.make_images(path, 1)
    assert path.is_dir() and not path.is_mount()
    why = os.strerror(22) if os.geteuid() == 0 else os.strerror(1)
    assert f"No tmpfs could be mounted at {path}" in (said := " ".join(capfd.readouterr().err.split())) and why in said
    here.drop_images()
