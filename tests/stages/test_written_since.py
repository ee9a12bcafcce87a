# SPDX-License-Identifier: GPL-2.0-or-later
"""The copy that a container has left was written to since: nobody else has that."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from migrator.base import removal
from migrator.copies import after_crash, origins, written_since
from migrator.errors.data import SnapshotFailed
from migrator.errors.this_host import CommandFailed, JournalBroken
from migrator.host import btrfs, lxc
from migrator.host.btrfs import Subvolume
from migrator.record.journal import Journal, Migration
from migrator.record.states import Event, Role, State
from stages import cleanup
from stages.steps import arguments, end_copy, finish_here
from tests.stages.earlier_stays import ARRIVED, ID, LATER, LEFT, begun, clean, journal, put_aside, stands, state  # noqa: F401 -- fixtures

pytestmark = pytest.mark.usefixtures("state")


class Transactions:
    """Of the file system: a write counts once it is on the disk."""

    def __init__(self) -> None:
        self.written = self.synced = 7

    def sync(self, _: Path) -> None:
        self.synced = self.written


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch, state: object) -> Transactions:
    made, told = Transactions(), btrfs.info

    def info(path: Path) -> Subvolume:
        return dataclasses.replace(told(path), changed=made.synced)

    monkeypatch.setattr(btrfs, "info", info)
    monkeypatch.setattr(btrfs, "sync", made.sync)
    return made


@pytest.mark.parametrize(("recorded", "written", "stays"), [
    (7, 7, False), (7, 8, True), (None, 8, False)], ids=["as it was left", "written to", "an older version's"])
def test_the_end_of_a_move_back_keeps_it(journal: Journal, tmp_path: Path, disk: Transactions, recorded: int | None,
                                         written: int, stays: bool, capfd: pytest.CaptureFixture[str]) -> None:
    begun(journal, tmp_path, Role.SOURCE, *LEFT, changed=recorded or 0)
    came = begun(journal, tmp_path, Role.DESTINATION, *ARRIVED, id=LATER, origin=ID)
    here = put_aside(tmp_path, came)
    disk.written = written
    for _ in range(2):  # as after a kill
        finish_here.end_here(came)
        assert [path.name for path in here.set_aside()] == ([f"{LATER}.ran.1"] if stays else [])
        assert (here.old / "config").is_file() is stays and not (here.old / "rootfs").exists()
    assert ("was written to after it had been left here" in " ".join(capfd.readouterr().err.split())) is stays
    if stays:
        (kept,) = here.set_aside()
        assert (kept / "written").exists() and str(kept) in after_crash.aside_note(came)
        assert str(kept) in clean(journal, tmp_path)
    assert here.set_aside() == []


def test_what_cannot_be_told_is_kept(journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(path: Path) -> None:
        raise SnapshotFailed(path=path, action="synced", reason="Input/output error")

    begun(journal, tmp_path, Role.SOURCE, *LEFT, changed=7)
    here = stands(tmp_path)
    monkeypatch.setattr(btrfs, "sync", fails)
    assert written_since.was_written_to(journal, here.container / "config", here.rootfs)


@pytest.mark.parametrize("there", [True, False])
def test_it_is_recorded_when_all_has_ended(journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                           disk: Transactions, there: bool) -> None:
    """What is written while it ends, as by LXC's hooks, is no stranger's."""
    went = begun(journal, tmp_path, Role.SOURCE, *LEFT[:-1])
    if there:
        stands(tmp_path)
    monkeypatch.setattr(origins, "source_uuids", lambda _: {"rootfs"})
    disk.written = 9
    went.move(Event.FINISHED, **end_copy._last_change(went))
    recorded: Migration | None = journal.by_id(ID, Role.SOURCE)
    assert recorded and recorded.state is State.FINISHED
    assert recorded.copy.changed == (9 if there else 0)


@pytest.mark.parametrize("held", ["something lives in it", "a mount", "clones", "another disk"])
@pytest.mark.parametrize(("origin", "written", "said"), [
    (ID, 7, ""), (ID, 9, "was written to after it had been left here"),
    ("ffffffff", 7, "may be the only copy of what it has")], ids=["a copy", "written to", "another container's"])
def test_who_is_told_how_it_goes_is_told_what_that_costs(journal: Journal, tmp_path: Path, disk: Transactions,
                                                         monkeypatch: pytest.MonkeyPatch, held: str, origin: str,
                                                         written: int, said: str,
                                                         capfd: pytest.CaptureFixture[str]) -> None:
    """Whatever keeps it where it is for now: when that has ended it goes by its name."""
    another = held == "another disk"
    begun(journal, tmp_path, Role.SOURCE, *LEFT, changed=7, rootfs_uuid="other" if another else "rootfs")
    came = begun(journal, tmp_path, Role.DESTINATION, *ARRIVED, id=LATER, origin=origin)
    here = put_aside(tmp_path, came)
    disk.written = written
    if held == "something lives in it":
        monkeypatch.setattr(lxc, "lives_in", lambda *_: True)
    elif held == "a mount":
        monkeypatch.setattr(removal, "mounts_in", lambda path: [f"{path}/mnt"] if here.old in path.parents else [])
    elif held == "clones":
        here.container.mkdir(exist_ok=True)
        (here.container / "lxc_snapshots").write_text("/var/lib/lxc\nclone\n")
    finish_here.end_here(came)
    assert (here.old / "rootfs" / "written").exists()
    told = " ".join(capfd.readouterr().err.split())
    if another:  # nothing tells what was written to that one
        said = "may be the only copy of what it has"
    assert f"What was in the place of web{f' {said}: it' if said else ''} stays in" in told
    assert another or "migrator cleanup web" in told
    assert "may be the only copy" in after_crash.aside_note(came)


@pytest.mark.parametrize(("recorded", "meanwhile", "stays"), [
    (7, "", False), (None, "", False), (6, "", True), (7, "it is started", True), (7, "it fails", False),
    (7, "the journal is full", True)])
def test_what_a_dry_run_reads_of_it_is_no_write(journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                disk: Transactions, state: SimpleNamespace, recorded: int | None,
                                                meanwhile: str, stays: bool) -> None:
    """To tell how large it is all of it is read, which relatime has kept in it."""
    begun(journal, tmp_path, Role.SOURCE, *LEFT, changed=recorded or 0)
    here = stands(tmp_path)
    locks: list[str] = []

    @contextlib.contextmanager
    def locked(name: str, *, lxcpath: Path) -> Iterator[None]:
        locks.append(name)
        yield
        locks.clear()

    def du(path: Path) -> int:
        assert locks == ["web"], "what comes back meanwhile would find it written to"
        disk.written += 1
        state.lives = meanwhile == "it is started"
        if meanwhile == "it fails":
            raise CommandFailed(command="btrfs", outcome="status 1", output="Input/output error")
        return 5

    def full(*_: object, **__: object) -> None:
        raise JournalBroken(path=tmp_path, reason="disk is full")

    monkeypatch.setattr(btrfs, "exclusive_bytes", du)
    for module, what, how in ((btrfs, "wait_deleted", lambda _: None), (btrfs, "free_bytes", lambda _: 0),
                              (arguments, "require_root", lambda _: None), (cleanup, "locked", locked),
                              (cleanup, "DEFAULT_PATH", tmp_path / "journal.db")):
        monkeypatch.setattr(module, what, how)
    if meanwhile == "the journal is full":
        monkeypatch.setattr(Migration, "note", full)
    options = cleanup.CleanupOptions("web", str(tmp_path), dry_run=True)
    with contextlib.suppress(CommandFailed):
        assert cleanup.run(options).data["sizes"] == {str(here.rootfs): 5}
    assert written_since.was_written_to(journal, here.container / "config", here.rootfs) is stays
