# SPDX-License-Identifier: GPL-2.0-or-later
"""The files that containers are locked by: they stay, or go, and two never have a lock because one has gone."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path

import pytest

from migrator.errors.this_host import Busy, JournalBroken
from migrator.record import container_lock, migration_paths
from migrator.record.migration_paths import locked


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(migration_paths, "MOMENT_LIMIT", 0.0)
    (tmp_path / "pool").mkdir()
    (tmp_path / "second").mkdir()
    return tmp_path / "run" / "lock"


def yes() -> bool:
    return True


def broken() -> bool:
    raise JournalBroken(path="journal.db", reason="disk I/O error")


def test_they_stay_unless_they_are_needless(folder: Path, tmp_path: Path) -> None:
    """Which is asked at the end: what was not known at first may have been recorded since."""
    known: list[str] = []
    with locked("web", folder, lxcpath=tmp_path / "pool", needless=lambda: not known):
        known.append("web")
    names = {"web", *container_lock.files("web", tmp_path / "pool")}
    assert {path.name for path in folder.iterdir()} == names and len(names) == 3
    with locked("web", folder, lxcpath=tmp_path / "pool", needless=broken):
        pass
    assert {path.name for path in folder.iterdir()} == names
    with locked("web", folder, lxcpath=tmp_path / "pool", needless=yes):
        pass
    assert list(folder.iterdir()) == []


def test_through_the_folder_of_both_others_come_to_what_they_know_the_name_of(folder: Path, tmp_path: Path) -> None:
    """As a container that is not root's comes to its configuration there, whoever has made that folder."""
    folder.parent.mkdir(mode=0o700)
    with locked("web", folder, lxcpath=tmp_path / "pool"):
        pass
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder.parent, folder)] == [0o711, 0o700]


def test_of_those_that_are_shared_none_is_taken_from_another(folder: Path, tmp_path: Path) -> None:
    """An older version locks that one alone: it must find it locked."""
    with locked("web", folder, lxcpath=tmp_path / "second"):
        with locked("web", folder, lxcpath=tmp_path / "pool", needless=yes):
            pass
        assert {path.name for path in folder.iterdir()} == {"web", *container_lock.files("web", tmp_path / "second")}
        with (folder / "web").open() as older, pytest.raises(BlockingIOError):
            fcntl.flock(older, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_who_is_refused_leaves_what_is_locked(folder: Path, tmp_path: Path) -> None:
    """And nothing of its own: here only the second file is another's, whose LXC path was spelled differently."""
    other = folder / container_lock.files("web", tmp_path / "pool")[1]
    folder.mkdir(parents=True)
    with other.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Busy), locked("web", folder, lxcpath=tmp_path / "pool", needless=yes):
            pass
        assert list(folder.iterdir()) == [other]


def test_a_file_that_goes_while_it_is_waited_for_is_no_lock(folder: Path, tmp_path: Path,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    """Opened while another had it locked, locked when that one had removed it: the next would lock a new one beside."""
    honest = fcntl.flock
    went: list[int] = []

    def flock(fd: int, how: int) -> None:
        if not went:
            went.append(fd)
            (folder / "web").unlink()
        honest(fd, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked("web", folder, lxcpath=tmp_path / "pool"):
        assert went and (folder / "web").exists()


def test_what_another_has_made_since_is_not_removed(folder: Path, tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """A shared lock goes before an exclusive one is there (flock(2)): another may remove the file in between."""
    honest = fcntl.flock

    def flock(fd: int, how: int) -> None:
        if how & fcntl.LOCK_EX and os.path.samestat(os.fstat(fd), (folder / "web").stat()):
            (folder / "web").unlink()
            (folder / "web").write_text("another's")
        honest(fd, how)

    with locked("web", folder, lxcpath=tmp_path / "pool", needless=yes):
        monkeypatch.setattr(fcntl, "flock", flock)
    assert [path.name for path in folder.iterdir()] == ["web"] and (folder / "web").read_text() == "another's"
