# SPDX-License-Identifier: GPL-2.0-or-later
"""What was let run and lives is not ended because nobody could record it, whatever LXC says of it."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from migrator.copies import after_crash, no_memory, origins, second_start
from migrator.criu import at_restore, criu_dump, ran_mark
from migrator.errors.containers import AlreadyRuns
from migrator.errors.memory import CopyNotEnded
from migrator.errors.this_host import CommandTimeout
from migrator.host import btrfs, lxc, subvolume_uuids
from migrator.record import image_folders, lxc_disk
from migrator.record.journal import Migration
from migrator.record.migration_paths import Layout
from migrator.record.states import State
from stages.steps import abandon, finish_here, left_running, settling
from tests.migrator.layouts import layout_of
from tests.stages.killed_restores import Container, acts, container, fence
from tests.stages.restoring import ID, mark, restoring

__all__ = ["acts", "container", "restoring"]


@pytest.mark.parametrize(("states", "cgroup", "tasks", "left", "up"), [
    (["RUNNING"], True, [1], [], True), (["FROZEN"], True, [1], [], True), (["RUNNING"], True, [], [], False),
    (["STOPPED"], True, [1], [], False), (["RUNNING"], False, [1], [], False), (["RUNNING"], True, [1], [99], False),
    (["FROZEN"], True, [1], [99], False),
])
def test_whether_it_has_come_up_by_lxcs_word(restoring: Migration, container: Container, acts: list[str],
                                             monkeypatch: pytest.MonkeyPatch, states: list[str], cgroup: bool,
                                             tasks: list[int], left: list[int], up: bool) -> None:
    waited: list[tuple[float, list[Path]]] = []
    mark(restoring)
    container.states = states
    if cgroup:
        container.folder.mkdir()
    monkeypatch.setattr(lxc, "processes", lambda of: tasks)

    def left_after(limit: float, folders: list[Path]) -> list[int]:
        waited.append((limit, folders))
        return left

    monkeypatch.setattr(criu_dump, "left_after", left_after)
    here = layout_of(restoring)
    assert settling._has_come_up(restoring, cast("lxc.Container", container), here) is up
    assert waited == [(settling.SETTLE_LIMIT, here.dumped_into())]


def test_a_start_from_its_disk_is_none_that_only_lxc_tells_of(restoring: Migration, container: Container,
                                                              acts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As where somebody else has started what is called so."""
    restoring.note("memory", memory=False)
    mark(restoring)
    container.states = ["RUNNING"]
    container.folder.mkdir()
    monkeypatch.setattr(lxc, "processes", lambda _: [1])
    for runs in (False, True):
        monkeypatch.setattr(no_memory, "runs", lambda *_, runs=runs: runs)
        assert settling._has_come_up(restoring, cast("lxc.Container", container), layout_of(restoring)) is runs


@pytest.fixture
def guest(restoring: Migration, container: Container, acts: list[str],
          monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the container's; it was let run, and CRIU has let go of it."""
    monkeypatch.setattr(image_folders, "RUNTIME", restoring.lxcpath / "run")
    restoring.note("memory", memory=True, dad={})
    let_go(restoring)
    mark(restoring)
    monkeypatch.setattr(left_running, "wait_stopped", lambda _: None)
    with subprocess.Popen(["sleep", "1000"]) as made, contextlib.ExitStack() as ends:
        ends.callback(made.kill)
        monkeypatch.setattr(lxc, "container_processes", lambda _: [made.pid] if made.poll() is None else [])
        monkeypatch.setattr(lxc, "processes", lambda _: lxc.container_processes(""))
        monkeypatch.setattr(lxc, "runs_in", lambda name, rootfs: (
            (name, rootfs) == ("web", layout_of(restoring).rootfs) and made.poll() is None))
        monkeypatch.setattr(second_start, "is_on", lambda pid, rootfs: rootfs == layout_of(restoring).rootfs)
        monkeypatch.setattr(Layout, "is_own", lambda here, path: (
            path == here.rootfs or (path == Path(f"/proc/{made.pid}/root") and made.poll() is None)))
        monkeypatch.setattr(Layout, "is_made_of", lambda here, path, _: here.is_own(path))
        yield made


def let_go(migration: Migration) -> None:
    folder = layout_of(migration).image_folders()[0]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / at_restore.LET_GO).touch()


def silent(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    def state(_: Container) -> str:
        raise CommandTimeout(command="lxc-info", limit="10")

    monkeypatch.setattr(Container, "state", property(state))


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("said", ["FROZEN", "STOPPED", "nothing"])
def test_what_lives_is_recorded_and_not_ended(
    restoring: Migration, container: Container, acts: list[str], guest: subprocess.Popen[bytes],
    monkeypatch: pytest.MonkeyPatch, said: str, memory: bool,
) -> None:
    """Somebody has frozen it, its monitor was killed, or stands still. What may be started beside it keeps its fence.

    Killed after it was let run, or its journal was full; then its source asks for it back.
    """
    restoring.note("memory", memory=memory)
    container.states = [said]
    if said == "FROZEN":
        container.folder.mkdir()
    if said == "nothing":
        silent(container, monkeypatch)
    for _ in range(2):
        with pytest.raises(AlreadyRuns):
            abandon._abandon(restoring, [])
        assert guest.poll() is None and str(restoring.state) == "restored"
        assert fence(restoring) == ("" if said == "FROZEN" else ID)
        assert not settling.stands_fenced(restoring)
    ends = ("cgroups dropped", "start ended", "deleted", "restore cleared")
    assert not [each for each in acts if each.startswith(ends)]
    assert ("announced 4711" in acts) is (said == "FROZEN")


def test_what_lives_without_a_monitor_is_this_hosts_in_the_end(
    restoring: Migration, acts: list[str], guest: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(finish_here, "drop_way_back", lambda _: None)
    monkeypatch.setattr(origins, "rootfs_uuid", lambda _: "")
    settling.settle(restoring)
    assert "Do not start a second one" in after_crash.note(restoring)
    finish_here.end_here(restoring)
    assert guest.poll() is None and str(restoring.state) == "finished" and fence(restoring) == ""


@pytest.mark.parametrize("marked", [True, False])
def test_what_criu_has_left_half_restored_is_ended(restoring: Migration, container: Container, acts: list[str],
                                                   guest: subprocess.Popen[bytes], marked: bool) -> None:
    """CRIU was killed itself: its tasks wait for each other for ever. The mark is made a moment before they go."""
    if marked:
        (layout_of(restoring).image_folders()[0] / at_restore.LET_GO).unlink()
    else:
        ran_mark.drop(ran_mark.mark(layout_of(restoring).spool))
    settling.settle(restoring)
    assert guest.poll() is not None and fence(restoring) == ID
    assert restoring.state is (State.RESTORED if marked else State.OWNED)


@pytest.mark.parametrize("said", ["RUNNING", "STOPPED", "no such container"])
def test_nothing_is_concluded_of_what_lives_and_is_not_told_from_another(
    restoring: Migration, container: Container, acts: list[str], guest: subprocess.Popen[bytes],
    monkeypatch: pytest.MonkeyPatch, said: str,
) -> None:
    """The snapshot that its root file system was made of was deleted by hand, for room; an older one is left."""
    container.states = [said, "STOPPED"]
    if said == "RUNNING":
        container.folder.mkdir()
    monkeypatch.setattr(lxc_disk, "is_removed", lambda _: said == "no such container")  # its configuration, by hand too
    monkeypatch.setattr(Layout, "is_own", lambda *_: False)
    monkeypatch.setattr(Layout, "own_snapshots", lambda _: [Path("/pool/.migrator/web/0badc0de.1")])
    monkeypatch.setattr(origins, "has_its_disk", lambda _: False)
    monkeypatch.setattr(left_running, "_is_in", lambda folders, pid: folders == [layout_of(restoring).rootfs])
    with pytest.raises(CopyNotEnded, match=str(guest.pid)):
        settling.settle(restoring)
    assert guest.poll() is None and restoring.state is State.RESTORING
    assert ran_mark.was(ran_mark.mark(layout_of(restoring).spool))


def test_what_hangs_in_criu_is_ended(restoring: Migration, acts: list[str], guest: subprocess.Popen[bytes],
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(criu_dump, "left_after", lambda limit, folders: [99])
    settling.settle(restoring)
    assert guest.poll() is not None and fence(restoring) == ID


def test_what_hangs_in_a_start_is_ended(restoring: Migration, acts: list[str], guest: subprocess.Popen[bytes],
                                        monkeypatch: pytest.MonkeyPatch) -> None:
    restoring.note("memory", memory=False)
    monkeypatch.setattr(no_memory, "runs", lambda *_: False)  # it has waited for that
    monkeypatch.setattr(no_memory, "_starting", lambda id_: [99] if id_ == ID else [])
    settling.settle(restoring)
    assert guest.poll() is not None and fence(restoring) == ID and f"start ended {ID}" in acts


@pytest.mark.parametrize(("boot", "ended"), [("an earlier one", False), (" ", True)])
def test_what_lives_in_another_boot_is_no_half_restored_one(
    restoring: Migration, acts: list[str], guest: subprocess.Popen[bytes], boot: str, ended: bool,
) -> None:
    """Nothing of a restore survives its boot, so somebody has started it. A mark that was cut off tells none."""
    (layout_of(restoring).image_folders()[0] / at_restore.LET_GO).unlink()
    mark(restoring, boot)
    settling.settle(restoring)
    assert (guest.poll() is not None) is ended
    assert str(restoring.state) == "restored" and fence(restoring) == ID


@pytest.mark.parametrize("whole", [True, False])
def test_its_configuration_alone_was_removed(restoring: Migration, acts: list[str], guest: subprocess.Popen[bytes],
                                             whole: bool) -> None:
    (layout_of(restoring).container / "config").unlink()
    if not whole:
        (layout_of(restoring).image_folders()[0] / at_restore.LET_GO).unlink()
    settling.settle(restoring)
    assert (guest.poll() is None) is whole and str(restoring.state) == "restored"


@pytest.mark.parametrize(("state", "up"), [("RUNNING", True), ("FROZEN", True), ("STOPPED", False),
                                           ("STARTING", False)])
def test_a_start_that_was_frozen_since_has_come_up(container: Container, monkeypatch: pytest.MonkeyPatch, state: str,
                                                   up: bool) -> None:
    monkeypatch.setattr(no_memory, "_starting", lambda _: [])
    container.states = [state]
    assert no_memory.runs(cast("lxc.Container", container), ID, 0.0) is up
    monkeypatch.setattr(no_memory, "_starting", lambda _: [99])
    assert not no_memory.runs(cast("lxc.Container", container), ID, 0.0)


def test_its_disk_is_known_by_itself_where_its_snapshots_were_deleted(restoring: Migration,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it is on record which one was brought here; or what runs would count as gone, and run on the source too."""
    monkeypatch.setattr(btrfs, "is_subvolume", lambda _: True)
    monkeypatch.setattr(btrfs, "info", lambda path: btrfs.Subvolume(path, "itself", "", False, 1, "deleted"))
    monkeypatch.setattr(subvolume_uuids, "ancestors", lambda _: iter(["deleted"]))
    assert not origins.has_its_disk(restoring)
    restoring.note("on record", rootfs_uuid="itself")
    assert origins.has_its_disk(restoring)
