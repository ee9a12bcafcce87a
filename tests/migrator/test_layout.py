# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a migration's things lie, and the lock that keeps commands off each other's containers."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from migrator import layout
from migrator.errors import Busy
from migrator.layout import Layout, locked


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    monkeypatch.setattr(layout, "RUNTIME", tmp_path / "run" / "migrator")
    monkeypatch.setattr(layout, "SHARED_MEMORY", tmp_path / "shm" / "migrator")
    for name in ("run", "shm", "pool"):
        (tmp_path / name).mkdir()
    return Layout(tmp_path / "pool", "web", "0badc0de")


def test_every_name_carries_the_id() -> None:
    made = Layout(Path("/pool"), "web", "0badc0de")
    other = Layout(Path("/pool"), "web", "00000001")
    for path in (made.snapshot(3), made.spool, made.old, *made.image_folders()):
        assert "0badc0de" in str(path)
    assert made.snapshot(3) == Path("/pool/.migrator/web/0badc0de.3")
    assert not {made.spool, made.old, *made.image_folders()} & {other.spool, other.old, *other.image_folders()}


def test_the_folder_is_closed_to_others(here: Layout) -> None:
    old = os.umask(0)
    try:
        here.make_folder()
        here.make_folder()
    finally:
        os.umask(old)
    assert stat.S_IMODE(here.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(here.folder.parent.stat().st_mode) == 0o700


def test_snapshots_are_told_from_the_rest(here: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    assert here.snapshots() == []
    here.make_folder()
    ages = {"00000001.1": 7, "0badc0de.1": 9, "0badc0de.2": 8, "0badc0de.10": 10}
    for name in (*ages, "0badc0de.spool", "0badc0de.old", "0badc0de.images", "notes.1", "0badc0de.1.bak"):
        (here.folder / name).mkdir()

    class Info:
        def __init__(self, path: Path) -> None:
            self.generation = ages[path.name]

    monkeypatch.setattr("migrator.btrfs.info", Info)
    assert [path.name for path in here.snapshots()] == ["00000001.1", "0badc0de.2", "0badc0de.1", "0badc0de.10"]
    assert [path.name for path in here.own_snapshots()] == ["0badc0de.2", "0badc0de.1", "0badc0de.10"]


def room(megabytes: dict[str, int], here: Layout) -> Callable[[Path], int]:
    top = here.lxcpath.parent
    return lambda path: megabytes[path.relative_to(top).parts[0]] << 20


@pytest.mark.parametrize(("needed", "memory", "run", "shm", "place"), [
    (100, 1000, 1000, 1000, 0),
    (100, 1000, 100, 1000, 1),  # /run is smaller than it looks: by default a fifth of the memory
    (100, 1000, 100, 100, 2),
    (600, 1000, 5000, 5000, 2),  # the restore needs the pages a second time
    (0, 1000, 1000, 1000, 0),
])
def test_images_go_where_there_is_room(here: Layout, monkeypatch: pytest.MonkeyPatch, needed: int, memory: int,
                                       run: int, shm: int, place: int) -> None:
    monkeypatch.setattr(layout, "memory_available", lambda: memory << 20)
    monkeypatch.setattr("migrator.btrfs.free_bytes", room({"run": run, "shm": shm}, here))
    path, why = layout.place_images(here, needed << 20)
    assert path == here.image_folders()[place]
    assert f"{memory} MiB" in why


def test_image_folders_are_made_and_dropped(here: Layout) -> None:
    assert here.images() is None
    path = here.image_folders()[0]
    layout.make_images(path, 0)
    (path / "pages-1.img").write_text("old")
    layout.make_images(path, 0)  # begins by removing its leftovers
    assert list(path.iterdir()) == []
    assert stat.S_IMODE(path.stat().st_mode) == 0o750
    # The container's root has to come through here.
    assert stat.S_IMODE(path.parent.stat().st_mode) & 0o011 == 0o011
    assert here.images() == path
    here.drop_images()
    assert here.images() is None
    here.drop_images()


def test_only_empty_folders_are_tidied_away(here: Layout) -> None:
    here.make_folder()
    here.spool.mkdir()
    here.tidy()
    assert here.spool.is_dir()
    here.drop_spool()
    here.tidy()
    assert not here.folder.parent.exists()
    assert here.lxcpath.is_dir()


def test_memory_available_is_what_the_kernel_says() -> None:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < layout.memory_available() <= total


# --- the lock -------------------------------------------------------------------------------------------------

HOLDER = """
import sys
from pathlib import Path
from migrator.layout import locked
with locked("web", Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_one_command_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "lock"
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdout.readline() == "locked\n"
        with pytest.raises(Busy, match=f"process {holder.pid}"), locked("web", folder):
            pass
        with locked("db", folder):  # another container
            pass
        holder.kill()
    with locked("web", folder):  # it ended with its process, however that ended
        pass
    with locked("web", folder):
        pass
