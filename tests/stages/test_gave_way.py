# SPDX-License-Identifier: GPL-2.0-or-later
"""What had given way on the destination is put back there, before the source has recorded that it goes on alone."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from migrator.config import container_config, include_copies
from migrator.copies import second_start
from migrator.errors.containers import AlreadyRuns, BackThere, DiskAway, MovedOn, OutOfOrder
from migrator.errors.memory import CopyNotEnded
from migrator.errors.this_host import CommandTimeout
from migrator.host import btrfs, lxc, roots, subvolume_uuids
from migrator.record import lxc_disk
from migrator.record.states import Event, State
from migrator.transfer.messages import Running
from stages.steps import abandon, finish_here, left_running, renamed, settling
from tests import btrfs_roots
from tests.stages.asks import abandons
from tests.stages.away_disk import ID, There, host, make

__all__ = ["host", "make"]

PID = 4711
OWN_DISK, ANOTHERS = "own", "another"


@pytest.fixture
def there(make: Callable[..., There], monkeypatch: pytest.MonkeyPatch) -> There:
    """It has run, was fenced, and has given way; the newest of its snapshots is kept."""
    found = make(Event.RESTORE)
    found.migration.move(Event.RESTORED, rootfs_uuid=OWN_DISK)
    found.migration.note("disk", disk=lxc_disk.of(found.pool))
    monkeypatch.setattr(subvolume_uuids, "ancestors", lambda _: iter([]))
    monkeypatch.setattr(btrfs, "id_of", lambda _: 300)
    monkeypatch.setattr(btrfs, "parent_of", lambda *_: ANOTHERS)
    monkeypatch.setattr(lxc, "Container", lambda *_: SimpleNamespace(state="STOPPED", rootfs=found.layout.rootfs))
    monkeypatch.setattr(include_copies, "used_by_others", lambda _: pytest.fail("the source is frozen meanwhile"))
    finish_here.give_way(found.migration)
    assert not found.layout.spool.exists() and found.layout.own_snapshots()
    return found


def asked_once_more(there: There, *, by_force: bool = False) -> None:
    """By a source that was killed before it could record the first answer."""
    assert abandon.abandon(there.service, abandons(gone=by_force)).known is True


def refused(there: There) -> None:
    """Neither may the source thaw its copy, nor end it, by force either; and nothing is recorded, or changed."""
    config = there.layout.container / "config"
    before = config.read_text() if config.is_file() else None
    for by_force in (False, True):
        with pytest.raises(BackThere):
            asked_once_more(there, by_force=by_force)
    with pytest.raises(BackThere) as error:
        finish_here.running(there.service, Running(id=ID))
    assert f"migrator finish web --force {ID}" in error.value.hint
    if not isinstance(error.value, MovedOn):
        assert "lxc-copy -R" in error.value.hint and "migrator rollback web" in error.value.hint
    assert there.migration.state is State.FINISHED and there.migration.arrived.given_way
    assert (config.read_text() if config.is_file() else None) == before


def goes_on(there: There) -> None:
    asked_once_more(there)
    with pytest.raises(OutOfOrder, match=r"^finish cannot run now: .* has yielded"):
        finish_here.running(there.service, Running(id=ID))


def unfenced(there: There) -> None:
    container_config.unfence(there.layout.container, ID)


def put(there: There, uuid: str) -> None:
    """A container, which has no fence, with a root file system."""
    shutil.rmtree(there.layout.container)
    there.layout.rootfs.mkdir(parents=True)
    (there.layout.rootfs / "uuid").write_text(uuid)
    (there.layout.container / "config").write_text("lxc.uts.name = web\n")


def test_what_stays_fenced_stays_given_way(there: There) -> None:
    goes_on(there)


def test_what_is_not_there_any_more_may_be_gone_for_good(there: There) -> None:
    shutil.rmtree(there.layout.container)
    goes_on(there)


def test_of_a_disk_that_is_away_nothing_is_looked_at(there: There, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its mount point may have gone with it."""
    monkeypatch.setattr(renamed, "living", lambda *_: pytest.fail("it is looked for"))
    there.pool.rename(there.pool.with_name("away"))
    with pytest.raises(DiskAway):
        asked_once_more(there)


def test_where_it_lives_does_not_hang_on_what_is_in_its_place(there: There, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renamed, "living", lambda *_: [PID])
    monkeypatch.setattr(renamed, "told", lambda *_: ("c9", "it runs under the name c9"))
    monkeypatch.setattr("stages.steps.gave_way._may_run_in_place", lambda *_: pytest.fail("that is looked at"))
    with pytest.raises(BackThere, match="runs under the name c9") as error:
        asked_once_more(there)
    assert not isinstance(error.value, MovedOn)


def test_its_configuration_may_name_another_root_file_system(there: There, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = there.pool / "elsewhere"
    put(there, ANOTHERS)
    elsewhere.mkdir()
    (elsewhere / "uuid").write_text(OWN_DISK)
    monkeypatch.setattr(btrfs, "info", lambda path: btrfs.Subvolume(
        path, (path / "uuid").read_text(), "", read_only=True, generation=1, parent_uuid=""))
    monkeypatch.setattr(lxc, "Container", lambda *_: SimpleNamespace(state="STOPPED", rootfs=elsewhere))
    refused(there)


def test_another_container_of_its_name_may_run(there: There, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has another disk."""
    put(there, ANOTHERS)
    monkeypatch.setattr(btrfs, "info", lambda path: btrfs.Subvolume(
        path, (path / "uuid").read_text(), "", read_only=True, generation=1, parent_uuid=""))
    monkeypatch.setattr(lxc, "Container", lambda *_: SimpleNamespace(state="RUNNING", rootfs=there.layout.rootfs))
    goes_on(there)


@pytest.mark.parametrize("snapshots", [True, False])
def test_one_that_was_renamed_back_may_be_started(there: There, snapshots: bool) -> None:
    """As `gone-there` advises. What it has run on is on record, as its snapshots may go with the next move."""
    put(there, OWN_DISK)
    if not snapshots:
        shutil.rmtree(there.layout.folder)
    refused(there)


def test_a_configuration_behind_a_link_that_leads_nowhere_now(there: There) -> None:
    """As where another disk, which is not mounted at this moment, has it: it may be started when that is back."""
    put(there, OWN_DISK)
    config = there.layout.container / "config"
    config.unlink()
    config.symlink_to("/nowhere/config")
    refused(there)


def test_one_that_was_gone_back_to(there: There, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot of what has run, which somebody had put by."""
    put(there, "a snapshot of it")
    shutil.rmtree(there.layout.folder)
    monkeypatch.setattr(subvolume_uuids, "ancestors", lambda _: iter([OWN_DISK]))
    refused(there)


@pytest.mark.parametrize("fenced", [False, True])
def test_one_that_was_made_of_what_was_removed_may_be_it(there: There, monkeypatch: pytest.MonkeyPatch,
                                                         fenced: bool) -> None:
    """lxc-copy -R makes a snapshot, and removes what it is of: there and back, nothing tells whose that is."""
    put(there, "a snapshot of a snapshot")
    shutil.rmtree(there.layout.folder)
    monkeypatch.setattr(subvolume_uuids, "ancestors", lambda _: iter(["removed"]))
    monkeypatch.setattr(subvolume_uuids, "_having", lambda *_: set())
    if not fenced:
        refused(there)
        monkeypatch.setattr(subvolume_uuids, "_having", lambda *_: {256})
        goes_on(there)
    else:  # by whomever: nobody starts it
        container_config.fence(there.layout.container, "lxc.uts.name = web\n", "feedface", "it has moved away")
        goes_on(there)


@pytest.mark.parametrize("fenced", [False, True])
def test_another_container_without_a_root_file_system_is_not_told_by_where_we_stand(
        there: There, monkeypatch: pytest.MonkeyPatch, fenced: bool) -> None:
    """Its path is empty then, which is the working folder's."""
    shutil.rmtree(there.layout.container)
    there.layout.container.mkdir()
    (there.layout.container / "config").write_text("lxc.uts.name = web\n")
    if fenced:
        container_config.fence(there.layout.container, "lxc.uts.name = web\n", ID, "it has moved away")
    here = there.pool / "here"
    here.mkdir()
    (here / "uuid").write_text(OWN_DISK)
    monkeypatch.chdir(here)
    monkeypatch.setattr(lxc, "Container", lambda *_: SimpleNamespace(state="STOPPED", rootfs=lxc.rootfs_path("")))
    monkeypatch.setattr(lxc, "runs_in", lambda _, rootfs: rootfs == Path())
    goes_on(there)


@pytest.mark.parametrize("how", ["all of it", "its hook alone", "what the hook does"])
def test_a_fence_that_was_taken_away(there: There, how: str) -> None:
    config, hook = there.layout.container / "config", there.layout.container / container_config.FENCE_HOOK
    if how == "all of it":
        unfenced(there)
    elif how == "its hook alone":
        config.write_text("\n".join(line for line in config.read_text().splitlines() if "pre-start" not in line))
    else:
        hook.write_text("#!/bin/sh\nexit 0\n")
    refused(there)


def test_one_that_runs_past_its_fence(there: There, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lxc, "Container", lambda *_: SimpleNamespace(state="RUNNING", rootfs=there.layout.rootfs))
    refused(there)


def test_one_that_has_moved_on_from_there(there: There) -> None:
    """It has the fence of that move: its container lives on elsewhere."""
    text = container_config.unfenced((there.layout.container / "config").read_text())
    container_config.fence(there.layout.container, text, "feedface", "it has moved on")
    refused(there)
    with pytest.raises(MovedOn) as error:
        asked_once_more(there)
    assert not re.search("migrator rollback|lxc-destroy|lxc-copy", error.value.hint)  # two would run


@pytest.mark.parametrize("lives", [True, False])
def test_who_listens_and_takes_no_connection_keeps_nobody_frozen(there: There, monkeypatch: pytest.MonkeyPatch,
                                                                lives: bool) -> None:
    """Any user of the host may, in the place of LXC's monitor of what stands fenced there: its processes tell."""
    class Container:
        rootfs, name = there.layout.rootfs, "web"

        @property
        def state(self) -> str:
            raise CommandTimeout(command="A connection to LXC's monitor of web", limit="10")

    monkeypatch.setattr(lxc, "Container", lambda *_: Container())
    monkeypatch.setattr(second_start, "on_disk", lambda *_: PID if lives else None)
    if lives:
        refused(there)
    else:
        asked_once_more(there)


@pytest.mark.parametrize("told", ["by its snapshots", "by what is on record", "by what it is a copy of"])
def test_one_that_runs_elsewhere(there: There, monkeypatch: pytest.MonkeyPatch, told: str) -> None:
    """By another name, say. Its root may be a folder in there."""
    shutil.rmtree(there.layout.container)
    monkeypatch.setattr(lxc, "container_processes", lambda _: [PID])
    btrfs_roots.are(monkeypatch, lambda _: True)
    btrfs_roots.are(monkeypatch, lambda _: True)
    monkeypatch.setattr(left_running, "is_in_own", lambda *_: told == "by its snapshots")
    if told == "by what is on record":
        monkeypatch.setattr(btrfs, "uuid_around", lambda path: (
            OWN_DISK if path == Path(f"/proc/{PID}/root") else ANOTHERS))
    else:
        monkeypatch.setattr(btrfs, "uuid_around", lambda _: ANOTHERS)
    if told == "by what it is a copy of":
        monkeypatch.setattr(btrfs, "parent_of", lambda number, path: (
            OWN_DISK if (number, path) == (300, Path(f"/proc/{PID}/root")) else ANOTHERS))
    refused(there)


@pytest.mark.parametrize(("cgroup", "root", "told"), [
    ("lxc.payload.c9", "c9", "c9"), ("lxc.payload.c9-1", "c9", "c9"), ("lxc.payload.c9-1", "c9-1", "c9-1"),
    ("lxc.payload.web", "web", "web"),
    ("lxc.payload.c9", "", None),  # in another LXC path, say
    ("own", "c9", None), ("user.slice", "", None),
])
def test_what_runs_is_named(there: There, monkeypatch: pytest.MonkeyPatch, cgroup: str, root: str,
                            told: str | None) -> None:
    """By what it is stopped; no other container is, be it that one has the name."""
    if told != "web":
        shutil.rmtree(there.layout.container)
        (there.pool / (root or "c9")).mkdir()
    monkeypatch.setattr(lxc, "container_processes", lambda _: [PID])
    btrfs_roots.are(monkeypatch, lambda _: True)
    monkeypatch.setattr(left_running, "is_in_own", lambda *_: True)
    monkeypatch.setattr(lxc, "cgroup_of", lambda _: Path("/sys/fs/cgroup", cgroup))
    monkeypatch.setattr(roots, "is_in", lambda _, folder, *__: folder == there.pool / (root or "none") / "rootfs")
    with pytest.raises(BackThere) as error:
        asked_once_more(there)
    assert f"lxc-stop -k -P {there.pool} {told or 'NAME'} --" in error.value.hint
    assert (str(PID) in error.value.message) is (told is None)
    assert ("under the name c9" in error.value.message) is (told not in (None, "web"))
    refused(there)


def test_what_runs_in_a_copy_of_it_is_not_given_up(make: Callable[..., There], monkeypatch: pytest.MonkeyPatch) -> None:
    """It was renamed by lxc-copy -R, and started by its new name: none of its snapshots tells that."""
    there = make(Event.RESTORE)
    there.migration.move(Event.RESTORED, rootfs_uuid=OWN_DISK)
    shutil.rmtree(there.layout.container)
    monkeypatch.setattr(lxc, "container_processes", lambda _: [PID])
    btrfs_roots.are(monkeypatch, lambda _: True)
    monkeypatch.setattr(left_running, "is_in_own", lambda *_: False)
    btrfs_roots.are(monkeypatch, lambda _: True)
    monkeypatch.setattr(btrfs, "uuid_around", lambda _: "a snapshot of it")
    monkeypatch.setattr(btrfs, "id_of", lambda _: 300)
    monkeypatch.setattr(btrfs, "parent_of", lambda *_: OWN_DISK)
    with pytest.raises(CopyNotEnded, match=str(PID)):
        asked_once_more(there, by_force=True)
    assert there.migration.state is State.RESTORED


def test_what_else_runs_is_none_of_it(there: There, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lxc, "container_processes", lambda _: [PID, os.getpid()])
    btrfs_roots.are(monkeypatch, lambda pid: pid == PID)
    monkeypatch.setattr(btrfs, "uuid_around", lambda _: ANOTHERS)
    goes_on(there)


def test_a_disk_that_is_away_shows_nothing(there: There, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no spool any more that would tell; the file system is on record."""
    unfenced(there)
    there.umount()
    of = there.migration.begun.disk
    monkeypatch.setattr(lxc_disk, "of", lambda path: "of the root" if there.disk.exists() else of)
    for ask in (lambda: asked_once_more(there), lambda: finish_here.running(there.service, Running(id=ID))):
        with pytest.raises(DiskAway) as away:
            ask()
    assert f"mkdir -p {there.layout.spool}" in away.value.hint
    there.mount()
    refused(there)


def test_a_disk_that_was_lost_since(there: There, monkeypatch: pytest.MonkeyPatch) -> None:
    there.umount()
    monkeypatch.setattr(lxc_disk, "of", lambda path: "of the root")
    there.layout.spool.mkdir(parents=True)  # as the error says
    goes_on(there)


@pytest.mark.parametrize("at_first", ["there", "away"])
def test_a_disk_that_goes_or_comes_while_it_is_looked_at(there: There, monkeypatch: pytest.MonkeyPatch,
                                                         at_first: str) -> None:
    of = there.migration.begun.disk
    monkeypatch.setattr(lxc_disk, "of", lambda path: "of the root" if there.disk.exists() else of)
    changes = [there.umount] if at_first == "there" else [there.mount]
    if at_first == "away":
        there.umount()

    def changed(_: str) -> list[int]:
        while changes:
            changes.pop()()
        return []

    monkeypatch.setattr(lxc, "container_processes", changed)
    with pytest.raises(DiskAway):
        asked_once_more(there)


def test_an_older_version_has_not_recorded_its_disk(there: There) -> None:
    there.migration.note("disk", disk=None)
    goes_on(there)


@pytest.mark.parametrize("in_place", ["nothing", "another one"])
def test_what_is_called_so_and_has_its_root_elsewhere_is_not_given_up(
        make: Callable[..., There], monkeypatch: pytest.MonkeyPatch, in_place: str) -> None:
    """With nothing in its place it is no other container of that name, unless in another LXC path: so it is named."""
    there = make(Event.RESTORE, Event.RESTORED)
    there.migration.note("rounds", rounds=[])
    called: list[int] = []

    def is_called_so(pid: int, *_: object) -> bool:
        called.append(pid)
        return True

    shutil.rmtree(there.layout.container)
    if in_place == "another one":  # a plain folder is its root: it passes for a start of ours
        there.layout.container.mkdir()
        (there.layout.container / "config").write_text("lxc.uts.name = web\n")
    monkeypatch.setattr(lxc, "END_LIMIT", 0.05)
    monkeypatch.setattr(lxc, "container_processes", lambda _: [PID])
    btrfs_roots.are(monkeypatch, lambda _: False)
    monkeypatch.setattr(second_start, "is_called_so", is_called_so)
    with pytest.raises(AlreadyRuns):  # without force, as ever
        asked_once_more(there)
    assert settling.is_at_work(there.migration) is (in_place == "nothing"), "`resume` there says that there are two"
    if in_place == "nothing":
        with pytest.raises(CopyNotEnded, match=str(PID)):
            asked_once_more(there, by_force=True)
        assert there.migration.state is State.RESTORED and called[0] == PID
        monkeypatch.setattr(second_start, "is_called_so", lambda *_: False)
    asked_once_more(there, by_force=True)
    assert str(there.migration.state) == "finished" and there.migration.arrived.given_way
