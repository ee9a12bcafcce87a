# SPDX-License-Identifier: GPL-2.0-or-later
"""Folders for memory images: whose are believed to be migrator's, and what becomes of one that stays mounted."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from migrator.base import log, removal
from migrator.record import image_folders
from migrator.record.migration_paths import Layout

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


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Layout]]:
    """Two migrations on a host that has memory for the images of one, not of both."""
    monkeypatch.setattr(image_folders, "RUNTIME", tmp_path / "run")
    monkeypatch.setattr(image_folders, "memory_available", lambda: 500 << 20)
    found = [Layout(tmp_path, name, id_) for name, id_ in (("web", ID), ("mail", "89abcdef"))]
    for each in found:
        each.work.mkdir(parents=True, exist_ok=True)
    yield found
    for each in found:
        each.drop_images()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_the_same_memory_is_not_promised_twice(host: list[Layout], monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one asks after the first one has, and before that has mounted anything."""
    goes_on, honest, places = threading.Event(), image_folders.make_images, dict[str, Path]()

    def provide(layout: Layout) -> None:
        places[layout.id] = image_folders.provide_images(layout.image_folders(), 50 << 20)[0]

    second = threading.Thread(target=provide, args=(host[1],))

    def make(path: Path, *how: Any) -> None:
        if threading.current_thread() is second:
            goes_on.set()
        else:
            second.start()
            assert goes_on.wait(60)
        honest(path, *how)

    monkeypatch.setattr(image_folders, "make_images", make)
    monkeypatch.setattr(image_folders, "time", SimpleNamespace(monotonic=lambda: 0.0, sleep=lambda _: goes_on.set()))
    provide(host[0])
    second.join()
    assert places == {host[0].id: host[0].image_folders()[0], host[1].id: host[1].image_folders()[1]}


@pytest.mark.parametrize("how", ["stopped", "no lock", "no folder"])
def test_nobody_is_kept_waiting_for_long(host: list[Layout], monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """By one that was stopped just then; and where nothing can be locked, that is no reason to wait or to fail."""
    clock = iter(range(0, 1000))

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(image_folders, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda _: None))
    monkeypatch.setattr(image_folders, "memory_available", lambda: 0)  # they go to disk
    with contextlib.ExitStack() as stack:
        if how == "stopped":
            image_folders.RUNTIME.mkdir()
            fd = os.open(image_folders.RUNTIME, os.O_RDONLY)
            stack.callback(os.close, fd)
            fcntl.flock(fd, fcntl.LOCK_EX)
        elif how == "no folder":
            image_folders.RUNTIME.symlink_to("nowhere/at/all")
        else:
            monkeypatch.setattr(fcntl, "flock", flock)
        folder, _ = image_folders.provide_images(host[0].image_folders(), 1)
    assert folder == host[0].image_folders()[1] and folder.is_dir()
    assert (next(clock) > image_folders.LOCK_LIMIT) is (how == "stopped")
