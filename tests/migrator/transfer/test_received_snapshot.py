# SPDX-License-Identifier: GPL-2.0-or-later
"""A stream that brings more than its snapshot: what it brought goes, nothing else. Folders stand for subvolumes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from migrator.errors import Interrupted
from migrator.errors.data import ReceiveFailed, SnapshotFailed
from migrator.host import btrfs
from migrator.transfer import received_snapshot

TARGET = "0badc0de.1"


class Here:
    """Where snapshots are received; `brings` is what a stream does there."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.spool, self.folder = folder / "spool", folder / "web"
        self.spool.mkdir()
        self.folder.mkdir()
        self.brings: Callable[[], object] = lambda: None
        monkeypatch.setattr(btrfs, "receive", self._receive)
        self.subvolumes: set[int] = set()  # by inode, as they may be renamed
        monkeypatch.setattr(btrfs, "is_subvolume", self._is_subvolume)
        monkeypatch.setattr(btrfs, "delete", self._delete)
        monkeypatch.setattr(btrfs, "info", lambda path: types.SimpleNamespace(uuid=f"uuid-{path.stat().st_ino}"))
        self.writable: list[str] = []
        monkeypatch.setattr(btrfs, "make_writable", lambda path: self.writable.append(path.name))
        (self.folder / "notes.txt").write_text("an administrator's")
        (self.folder / "00000001.1").mkdir()
        (self.folder / "00000001.1" / "disk").mkdir()

    def _receive(self, _stream: Iterable[bytes], folder: Path, **_: object) -> None:
        (folder / TARGET).mkdir()
        self.brings()

    def _is_subvolume(self, path: Path) -> bool:
        if not path.is_dir():
            return False
        if path.name.endswith((".1", ".sub")):
            self.subvolumes.add(path.stat().st_ino)
        return path.stat().st_ino in self.subvolumes

    def _delete(self, path: Path, **_: bool) -> None:
        if path.is_dir():
            shutil.rmtree(path)

    def receive(self) -> None:
        received_snapshot.receive([], self.folder / TARGET, self.spool)

    def names(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    return Here(tmp_path, monkeypatch)


BEFORE = {"notes.txt", "00000001.1"}


def test_one_that_brings_its_snapshot(here: Here) -> None:
    for _ in range(2):
        here.receive()
        assert here.names() == {*BEFORE, TARGET}
    assert list(here.spool.iterdir()) == []


def subvolume(here: Here) -> None:
    (here.folder / "other.sub").mkdir()
    (here.folder / "other.sub" / "inner").mkdir()


def other_migrations(here: Here) -> None:
    (here.folder / "deadbeef.1").mkdir()


def tree(here: Here) -> None:
    (here.folder / "0badc0de.spool" / "a" / "b.sub").mkdir(parents=True)
    (here.folder / "0badc0de.spool" / "config.json").write_text("{}")


def no_subvolume(here: Here) -> None:
    """It has the name of the snapshot, and was made by a path that leads out of another one."""
    (here.folder / TARGET).rmdir()
    (here.folder / TARGET).write_text("")
    (here.folder / "other.sub").mkdir()


def file_and_link(here: Here) -> None:
    (here.folder / "\x1b[2J").write_text("")
    (here.folder / "link").symlink_to(here.spool.parent)


@pytest.mark.parametrize("brings", [subvolume, other_migrations, tree, no_subvolume, file_and_link])
def test_one_that_brings_more_is_refused(here: Here, brings: Callable[[Here], None]) -> None:
    here.brings = lambda: brings(here)
    with pytest.raises(ReceiveFailed, match="brings more"):
        here.receive()
    assert here.names() - {TARGET} == BEFORE
    assert not (here.folder / TARGET).is_file()
    assert here.spool.is_dir()


def renamed(here: Here) -> None:
    (here.folder / "00000001.1").rename(here.folder / "junk.sub")


def under_its_name(here: Here) -> None:
    renamed(here)
    (here.folder / "00000001.1").mkdir()
    (here.folder / "00000001.1" / "planted").mkdir()


def into_the_snapshot(here: Here) -> None:
    (here.folder / "00000001.1").rename(here.folder / TARGET / "junk.sub")


def as_the_snapshot(here: Here) -> None:
    (here.folder / TARGET).rmdir()
    (here.folder / "00000001.1").rename(here.folder / TARGET)


def deep_down(here: Here) -> None:
    (here.folder / "brought" / "a").mkdir(parents=True)
    under_its_name(here)
    (here.folder / "junk.sub").rename(here.folder / "brought" / "a" / "b.sub")
    (here.folder / "notes.txt").rename(here.folder / "brought" / "notes")


def changed_about(here: Here) -> None:
    (here.folder / "notes.txt").rename(here.folder / "x")
    (here.folder / "00000001.1").rename(here.folder / "notes.txt")
    (here.folder / "x").rename(here.folder / "00000001.1")


def hard_link(here: Here) -> None:
    (here.folder / "notes").hardlink_to(here.folder / "notes.txt")


@pytest.mark.parametrize("brings", [renamed, under_its_name, into_the_snapshot, as_the_snapshot, deep_down,
                                    changed_about, hard_link])
@pytest.mark.parametrize("killed", [False, True])
def test_what_was_there_before_keeps_its_name(here: Here, brings: Callable[[Here], None], killed: bool) -> None:
    before = {name: (here.folder / name).stat().st_ino for name in BEFORE}
    if killed:
        def is_killed() -> None:
            brings(here)
            (here.spool / received_snapshot.NOTE).rename(here.spool / "kept")

        here.brings = is_killed
        with contextlib.suppress(FileNotFoundError):
            here.receive()
        (here.spool / "kept").rename(here.spool / received_snapshot.NOTE)
        assert received_snapshot.clear(here.folder, here.spool)
    else:
        here.brings = lambda: brings(here)
        with pytest.raises(ReceiveFailed, match="brings more"):
            here.receive()
    assert here.names() - {TARGET} == BEFORE
    assert {name: (here.folder / name).stat().st_ino for name in BEFORE} == before
    assert [path.name for path in (here.folder / "00000001.1").iterdir()] == ["disk"]
    assert here.writable == ([TARGET] if brings is into_the_snapshot else [])


@pytest.mark.parametrize("killed", [False, True])
def test_the_folder_stays_as_it_was(here: Here, killed: bool) -> None:
    """A link that leads there is followed, and what is made in it next inherits a default ACL."""
    here.folder.chmod(0o710)
    for name, value in ((b"user.kept", b"\0\xff"), (b"user.changed", b"as it was"), (b"user.taken", b"")):
        os.setxattr(here.folder, name, value)

    def changes() -> None:
        here.folder.chmod(0o2777)
        os.chown(here.folder, os.getuid(), max(os.getgroups(), default=os.getgid()))
        os.setxattr(here.folder, b"user.changed", b"as it is")
        os.setxattr(here.folder, b"user.brought", b"by it")
        os.removexattr(here.folder, b"user.taken")
        if killed:
            (here.spool / received_snapshot.NOTE).rename(here.spool / "kept")

    before = received_snapshot._own(here.folder)
    here.brings = changes
    if killed:
        here.receive()
        assert received_snapshot._own(here.folder) != before
        (here.spool / "kept").rename(here.spool / received_snapshot.NOTE)
        assert received_snapshot.clear(here.folder, here.spool) == ["."]
    else:
        with pytest.raises(ReceiveFailed, match=r"brings more than that: '\.'$"):
            here.receive()
    assert received_snapshot._own(here.folder) == before
    assert (before["mode"], before["attributes"]["user.kept"]) == (0o710, "00ff")
    assert here.names() == {*BEFORE, TARGET}


def test_the_folder_of_an_older_versions_note(here: Here) -> None:
    (here.spool / received_snapshot.NOTE).write_text(
        json.dumps({"before": dict.fromkeys(BEFORE, ""), "target": TARGET}))
    here.folder.chmod(0o711)
    assert received_snapshot.clear(here.folder, here.spool) == []
    assert here.folder.stat().st_mode & 0o777 == 0o711


def test_what_holds_what_was_there_before_stays(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where that cannot be taken out of it any more."""
    def refuse(path: Path) -> None:
        raise SnapshotFailed(path=path, action="made writable", reason="no")

    def into_another() -> None:
        (here.folder / "other.sub").mkdir()
        (here.folder / "00000001.1").rename(here.folder / "other.sub" / "junk.sub")

    monkeypatch.setattr(btrfs, "make_writable", refuse)
    here.brings = into_another
    with pytest.raises(ReceiveFailed, match="brings more"):
        here.receive()
    assert (here.folder / "other.sub" / "junk.sub" / "disk").is_dir()


def test_what_cannot_be_told_goes_by_its_name(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise OSError("no answer")

    monkeypatch.setattr(btrfs, "info", fail)
    here.receive()
    assert here.names() == {*BEFORE, TARGET}


def test_one_that_fails_says_why(here: Here) -> None:
    def fails() -> None:
        subvolume(here)
        raise ReceiveFailed(path=here.folder, reason="it is damaged")

    here.brings = fails
    with pytest.raises(ReceiveFailed, match="damaged"):
        here.receive()
    assert here.names() == {*BEFORE, TARGET}


def test_what_one_that_was_killed_has_brought_goes_with_the_next(here: Here) -> None:
    (here.spool / received_snapshot.NOTE).write_text(json.dumps({"before": [*here.names()], "target": TARGET}))
    other_migrations(here)
    tree(here)
    here.receive()
    assert here.names() == {*BEFORE, TARGET}


def test_two_threads_undo_it_one_after_the_other(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """One gives a name back by way of another name, which the other would take for one that was brought."""
    note = json.dumps({"before": [*here.names()], "target": TARGET})
    (here.spool / received_snapshot.NOTE).write_text(note)
    subvolume(here)
    honest, found = received_snapshot._give_back, list[list[str]]()
    second = threading.Thread(target=lambda: found.append(received_snapshot.clear(here.folder, here.spool)))

    def give_back(folder: Path, before: dict[str, str]) -> tuple[list[str], set[str]]:
        monkeypatch.setattr(received_snapshot, "_give_back", honest)
        second.start()
        second.join(1.0)  # it would be through, if it did not wait
        assert found == []
        return honest(folder, before)

    monkeypatch.setattr(received_snapshot, "_give_back", give_back)
    assert received_snapshot.clear(here.folder, here.spool) and here.names() == BEFORE
    second.join(60)
    assert found == [[]], "there was nothing left to undo"


@pytest.mark.parametrize("note", [None, "", "7", "[]", "{}", '{"before": [[]], "target": ""}', '{"before": ["a"'])
def test_without_a_note_nothing_goes(here: Here, note: str | None) -> None:
    """A power cut can leave an empty one."""
    if note is not None:
        (here.spool / received_snapshot.NOTE).write_text(note)
    assert received_snapshot.clear(here.folder, here.spool) == []
    assert here.names() == BEFORE


# --- what a killed program has left at work -------------------------------------------------------------------


class Left:
    """`btrfs receive`, started as `migrator.host.btrfs` does it, which waits for its stream."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.started: list[subprocess.Popen[bytes]] = []
        program = folder / "bin" / "btrfs"
        program.parent.mkdir()
        program.write_text("#!/bin/sh\necho begun\nread line\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent), prepend=":")

    def receives(self, folder: Path, *command: str) -> subprocess.Popen[bytes]:
        words = list(command) or btrfs.receive_command(folder)
        made = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.started.append(made)
        assert made.stdout and made.stdout.readline() == b"begun\n"
        return made


@pytest.fixture
def left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Left]:
    made = Left(tmp_path, monkeypatch)
    yield made
    for each in made.started:
        each.kill()
        each.communicate()


def test_what_a_killed_program_has_left_at_work_is_ended_first(here: Here, left: Left) -> None:
    (here.spool / received_snapshot.NOTE).write_text(json.dumps({"before": [*here.names()], "target": TARGET}))
    ours = left.receives(here.folder)
    others = [left.receives(here.folder.with_name("web2")), left.receives(here.folder, "btrfs", "scrub",
                                                                          str(here.folder))]
    ended: list[int | None] = []
    here.brings = lambda: ended.append(ours.wait(60))
    here.receive()
    assert ended == [-signal.SIGKILL] and [each.poll() for each in others] == [None, None]


def test_also_where_it_is_given_up(here: Here, left: Left) -> None:
    (here.spool / received_snapshot.NOTE).write_text(json.dumps({"before": [*here.names()], "target": TARGET}))
    ours = left.receives(here.folder)
    received_snapshot.clear(here.folder, here.spool)
    assert ours.wait(60) == -signal.SIGKILL
    assert not (here.spool / received_snapshot.NOTE).exists()


def test_one_that_does_not_end_keeps_the_next_from_beginning(here: Here, monkeypatch: pytest.MonkeyPatch,
                                                             capfd: pytest.CaptureFixture[str]) -> None:
    """It hangs in the kernel, on a broken disk. A rollback goes on."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    (here.spool / received_snapshot.NOTE).write_text(json.dumps({"before": [*here.names()], "target": TARGET}))
    monkeypatch.setattr(received_snapshot, "processes", lambda folder: [gone.pid] if folder == here.folder else [])
    monkeypatch.setattr(received_snapshot, "END_LIMIT", 0.0)
    with pytest.raises(ReceiveFailed, match=f"does not end .process {gone.pid}"):
        here.receive()
    assert here.names() == BEFORE and (here.spool / received_snapshot.NOTE).exists()
    received_snapshot.clear(here.folder, here.spool)
    assert f"process {gone.pid}" in " ".join(capfd.readouterr().err.split())


@pytest.mark.parametrize("ends", [True, False])
def test_the_wait_for_that_is_part_of_the_time_it_may_take(here: Here, monkeypatch: pytest.MonkeyPatch,
                                                           ends: bool) -> None:
    """As a container may stand still meanwhile. Each look takes a second."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    now, limits = [1000.0], []

    def receive(*_: object, limit: float, **__: object) -> None:
        limits.append(limit)
        (here.folder / TARGET).mkdir()

    monkeypatch.setattr("migrator.transfer.received_snapshot.time", types.SimpleNamespace(
        monotonic=lambda: now[0], sleep=lambda _: now.__setitem__(0, now[0] + 1.0)))
    monkeypatch.setattr(received_snapshot, "processes", lambda _: [] if ends and now[0] >= 1003.0 else [gone.pid])
    monkeypatch.setattr(btrfs, "receive", receive)
    (here.spool / received_snapshot.NOTE).write_text(json.dumps({"before": [*here.names()], "target": TARGET}))
    with contextlib.nullcontext() if ends else pytest.raises(ReceiveFailed, match="does not end"):
        received_snapshot.receive([], here.folder / TARGET, here.spool, limit=5.0)
    assert limits == ([2.0] if ends else []) and now[0] == (1003.0 if ends else 1006.0)


def test_nothing_is_received_where_no_time_is_left(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float] = []
    monkeypatch.setattr(btrfs, "receive", lambda *_, limit, **__: limits.append(limit))
    received_snapshot.receive([], here.folder / TARGET, here.spool, limit=-1.0)
    assert limits == [0.0]


def test_ctrl_c_is_no_failure_to_tell_or_to_remove(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends what is done, however well that gets along with what a library raises."""
    def pressed(*_: object) -> None:
        raise Interrupted(signal="SIGINT")

    folder, spool = tmp_path / "folder", tmp_path / "spool"
    for path in (folder, spool):
        path.mkdir()
    (folder / "brought").mkdir()
    (spool / received_snapshot.NOTE).write_text(json.dumps({"before": {}, "target": "0badc0de.1"}))
    for name in ("is_subvolume", "remove"):
        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            patch.setattr(received_snapshot if name == "remove" else btrfs, name, pressed)
            received_snapshot.clear(folder, spool) if name == "remove" else received_snapshot._mark(folder, tmp_path)
    assert (spool / received_snapshot.NOTE).exists(), "the next one goes on"


def test_the_note_is_on_disk_before_anything_is_received(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut may leave what was received, and of a file that was not synced its name alone."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
    found: list[bool] = []
    here.brings = lambda: found.append(
        {path.stat().st_ino for path in (here.spool, here.spool / received_snapshot.NOTE)} <= set(synced))
    here.receive()
    assert found == [True]
