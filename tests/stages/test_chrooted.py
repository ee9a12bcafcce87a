# SPDX-License-Identifier: GPL-2.0-or-later
"""What was started without its memory, and whose first process has called chroot(2), as `named -t DIR`.

No process has the root file system as its root then, but a folder in it. It is found all the same, and nothing in there
of a stranger's is ended.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from migrator.copies import no_memory, origins, second_start
from migrator.criu import ran_mark
from migrator.errors.memory import CopyNotEnded
from migrator.host import btrfs, lxc, monitor_socket, roots
from migrator.record import lxc_disk
from migrator.record.journal import Migration
from migrator.record.migration_paths import Layout
from migrator.record.states import Event, State
from stages.steps import left_running, settling
from tests import btrfs_roots
from tests.migrator.layouts import layout_of
from tests.stages.killed_restores import Container, acts, container, fence
from tests.stages.other_starts import SLEEP, START, lives
from tests.stages.restoring import ID, mark, restoring

__all__ = ["acts", "container", "restoring"]
OWN, INSIDE = 256, 300


@pytest.fixture
def guest(restoring: Migration, container: Container, acts: list[str],
          monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Its first process, which lives in a folder of the subvolume that this migration has made in its place."""
    here = layout_of(restoring)
    restoring.note("without its memory", memory=False, dad={}, rounds=[])
    with lives(*START, *SLEEP) as found:
        root = Path(f"/proc/{found[1]}/root")
        made_by = {here.rootfs: "arrived"}
        monkeypatch.setattr(btrfs, "is_subvolume", lambda path: path in (here.rootfs, here.snapshot(1)))
        monkeypatch.setattr(btrfs, "info", lambda path: btrfs.Subvolume(
            path, "arrived" if path == here.snapshot(1) else "own", "", read_only=True, generation=1,
            parent_uuid=made_by.get(path, "")))
        monkeypatch.setattr(btrfs, "id_of", lambda path: 5 if path == root else 6)
        monkeypatch.setattr(btrfs, "parent_of", lambda number, _: "arrived" if number == 5 else "")
        monkeypatch.setattr(Layout, "own_snapshots", lambda _: [here.snapshot(1)])
        monkeypatch.setattr(roots, "at", lambda path: roots.Root(7, INSIDE if path == root else OWN))
        btrfs_roots.are(monkeypatch, lambda _: True)
        monkeypatch.setattr(roots, "is_top_of_own_mount", lambda _: False)
        monkeypatch.setattr(lxc, "container_processes", lambda _: found[1:])
        monkeypatch.setattr(lxc, "processes", lambda _: found[1:])
        monkeypatch.setattr(no_memory, "_starting", lambda _: [])
        yield found[1]


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}/root").exists()


@pytest.mark.parametrize("known", [True, False])
def test_it_has_come_up(restoring: Migration, container: Container, acts: list[str], guest: int, known: bool) -> None:
    """The program that has started it was killed before it could record that, and LXC's monitor too, or not."""
    mark(restoring)
    if known:
        container.states = ["RUNNING"]
        container.folder.mkdir()
    settling.settle(restoring)
    assert is_alive(guest) and restoring.state is State.RESTORED and restoring.arrived.had_stopped is None
    assert not [each for each in acts if "ended" in each] and not (container.folder / "cgroup.kill").exists()
    assert fence(restoring) == ("" if known else ID)
    assert settling.lives_on(layout_of(restoring)) and not settling.stands_fenced(restoring)


def test_it_is_its_own_by_lxcs_monitor_wherever_its_root_is(restoring: Migration, container: Container, acts: list[str],
                                                            guest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a tmpfs. That monitor has this migration in its environment."""
    monkeypatch.setattr(roots, "at", lambda path: roots.Root(7, 1) if path.name == "root" else roots.Root(8, OWN))
    monkeypatch.setattr(btrfs, "parent_of", lambda *_: "")
    monkeypatch.setattr(no_memory, "_ours", lambda id_: {99: ["[lxc monitor]"]} if id_ == ID else {})
    mark(restoring)
    container.states = ["RUNNING"]
    container.folder.mkdir()
    settling.settle(restoring)
    assert is_alive(guest) and restoring.state is State.RESTORED and fence(restoring) == ""


@pytest.mark.parametrize("removed", [True, False])
def test_nothing_is_given_back_while_it_may_live(restoring: Migration, container: Container, acts: list[str],
                                                 guest: int, removed: bool) -> None:
    """It may be a container that somebody has made in that folder, so it is not ended either."""
    if removed:
        (layout_of(restoring).container / "config").unlink()
    with pytest.raises(CopyNotEnded, match=str(guest)):
        settling.clear(restoring)
    assert is_alive(guest) and "deleted" not in acts


@pytest.mark.parametrize("what", ["with its memory", "a visitor", "put aside"])
def test_what_is_none_keeps_nothing_from_being_given_back(
        restoring: Migration, container: Container, acts: list[str], guest: int, monkeypatch: pytest.MonkeyPatch,
        what: str) -> None:
    """CRIU restores no first process with such a root; and who looks around lives in this host's mount namespace."""
    if what == "with its memory":
        restoring.note("with its memory", memory=True)
    elif what == "a visitor":
        monkeypatch.setattr("migrator.copies.second_start._id", lambda _: (1, 1))
    else:
        monkeypatch.setattr(Layout, "set_aside", lambda here: [here.rootfs])
    settling.clear(restoring)
    assert is_alive(guest) and not ran_mark.was(ran_mark.mark(layout_of(restoring).spool)) and "deleted" in acts


def test_it_keeps_its_disk_from_being_removed(restoring: Migration, container: Container, acts: list[str], guest: int,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lxc, "payload_processes", lambda _: [guest])
    assert lxc.lives_in("web", layout_of(restoring).rootfs)
    assert origins.whose(layout_of(restoring)).may_go


@pytest.mark.parametrize(("within", "top", "below"), [(True, False, True), (True, True, False), (False, False, False)])
def test_what_lives_below_has_but_a_folder_for_its_root(restoring: Migration, container: Container, acts: list[str],
                                                        guest: int, monkeypatch: pytest.MonkeyPatch, within: bool,
                                                        top: bool, below: bool) -> None:
    """What has the top of such a subvolume is ended, and not only told."""
    monkeypatch.setattr(left_running, "is_in_own", lambda *_: within)
    monkeypatch.setattr(left_running, "_is_own", lambda *_: top)
    assert left_running.live_below(layout_of(restoring)) == [guest] * below


@pytest.fixture
def elsewhere(guest: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """It has called pivot_root(2) to a tmpfs, so that nothing of it has a root in there; LXC's monitor was killed."""
    monkeypatch.setattr(roots, "at", lambda path: roots.Root(7, 1) if path.name == "root" else roots.Root(8, OWN))
    btrfs_roots.are(monkeypatch, lambda _: False)
    monkeypatch.setattr(btrfs, "parent_of", lambda *_: "")
    monkeypatch.setattr(second_start, "_cgroup", lambda _: "0::/lxc.payload.web\n")
    monkeypatch.setattr(monitor_socket, "_program", lambda _: "init")  # which waits for it now
    monkeypatch.setattr(lxc, "END_LIMIT", 0.05)
    return guest


@pytest.mark.parametrize("removed", [True, False])
def test_nor_while_it_may_live_elsewhere(restoring: Migration, container: Container, acts: list[str], elsewhere: int,
                                         removed: bool) -> None:
    if removed:
        (layout_of(restoring).container / "config").unlink()
    with pytest.raises(CopyNotEnded, match=str(elsewhere)):
        settling.clear(restoring)
    assert is_alive(elsewhere) and "deleted" not in acts


def test_it_is_not_started_once_more_nor_does_it_give_way(
        restoring: Migration, container: Container, acts: list[str], elsewhere: int,
        monkeypatch: pytest.MonkeyPatch) -> None:
    """What has its fence still would be: by LXC's word it has stopped."""
    restoring.move(Event.RESTORED)
    monkeypatch.setattr(Container, "rootfs", layout_of(restoring).rootfs, raising=False)
    monkeypatch.setattr(settling, "has_left", lambda _: False)
    monkeypatch.setattr(lxc_disk, "is_removed", lambda _: False)
    assert settling.seems_fenced(restoring)
    assert settling.is_at_work(restoring) and not settling.stands_fenced(restoring)
    monkeypatch.setattr(second_start, "_cgroup", lambda _: "0::/lxc.payload.other\n")
    assert not settling.is_at_work(restoring) and settling.stands_fenced(restoring)


def test_what_is_just_ending_is_waited_for(restoring: Migration, container: Container, acts: list[str], elsewhere: int,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lxc, "END_LIMIT", 600.0)
    looks = [False, True, True]
    monkeypatch.setattr(second_start, "is_called_so", lambda *_: looks.pop())
    settling.clear(restoring)
    assert looks == [] and "deleted" in acts
