# SPDX-License-Identifier: GPL-2.0-or-later
"""What has run on the destination was renamed there by lxc-copy -R, once or more often: it is no other container."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from migrator.base import bounded_ask
from migrator.config import lxc_settings
from migrator.copies import origins, second_start
from migrator.errors.containers import AlreadyRuns, BackThere, ContainerNotRunning, GoneThere
from migrator.errors.data import NotBtrfs
from migrator.errors.memory import CopyNotEnded
from migrator.errors.ownership import TwoCopies
from migrator.errors.this_host import CommandTimeout
from migrator.host import btrfs, lxc, monitor_socket, roots, subvolume_uuids
from migrator.record import lxc_disk
from migrator.record.states import Event, State
from migrator.transfer.messages import Done, Running
from stages.steps import abandon, ask_source, finish_here, left_running, renamed, resume_destination, settling
from stages.steps.ask_source import Asking
from tests import btrfs_roots
from tests.stages.asks import abandons
from tests.stages.away_disk import ID, There, host, make

__all__ = ["host", "make"]

OWN_DISK, ITS, PID = "own", "00:16:3e:00:00:01", 4711
CONFIG = "lxc.uts.name = web\nlxc.net.0.type = veth\nlxc.net.0.hwaddr = {}\n"
BOOT = Asking()


@pytest.fixture
def there(make: Callable[..., There], monkeypatch: pytest.MonkeyPatch) -> There:
    """It has run, and is not in its place any more. What is made of `removed` was made of what is not there now."""
    found = make(Event.RESTORE)
    (found.layout.container / "config").write_text(CONFIG.format(ITS))
    monkeypatch.setattr(origins, "rootfs_uuid", lambda _: OWN_DISK)
    settling.record(found.migration, 0.0)
    shutil.rmtree(found.layout.container)
    monkeypatch.setattr(subvolume_uuids, "ancestors", lambda _: iter(["removed"]))
    monkeypatch.setattr(subvolume_uuids, "_having", lambda *_: set())
    return found


def put(there: There, monkeypatch: pytest.MonkeyPatch, name: str, hwaddr: str, state: str = "RUNNING") -> None:
    """A container, made of what was removed since."""
    rootfs = there.pool / name / "rootfs"
    rootfs.mkdir(parents=True)
    (rootfs / "uuid").write_text("a copy")
    (there.pool / name / "config").write_text(CONFIG.format(hwaddr))
    monkeypatch.setattr(btrfs, "info", lambda path: btrfs.Subvolume(
        path, (path / "uuid").read_text(), "", read_only=True, generation=1,
        parent_uuid="removed" if path == rootfs else "snapshot"))

    class Container:
        def __init__(self, called: str, lxcpath: Path, **_: object) -> None:
            self.state, self.rootfs = state if called == name else "STOPPED", rootfs
            self.name, self.lxcpath = called, lxcpath

        @property
        def init_pid(self) -> int:
            if self.state == "STOPPED":
                raise ContainerNotRunning(name=self.name, lxcpath=self.lxcpath, state=self.state)
            return PID

    monkeypatch.setattr(lxc, "Container", Container)
    if state != "STOPPED":
        monkeypatch.setattr(lxc, "container_processes",  # "": of any
                            lambda of: [PID] if not of or (there.pool / of).is_dir() else [])
        monkeypatch.setattr(lxc, "cgroup_of", lambda _: Path(f"/sys/fs/cgroup/lxc.payload.{name}"))
        btrfs_roots.are(monkeypatch, lambda _: True)
        monkeypatch.setattr(left_running, "is_in_own", lambda *_: False)
        monkeypatch.setattr(left_running, "_is_in", lambda folders, _: rootfs in folders)
        monkeypatch.setattr(btrfs, "uuid_around", lambda _: "a copy")
        monkeypatch.setattr(btrfs, "id_of", lambda _: 300)
        monkeypatch.setattr(btrfs, "parent_of", lambda *_: "removed")


def runs_on(monkeypatch: pytest.MonkeyPatch, rootfs: Path) -> None:
    """PID is the first process of a container that has this root file system, in a cgroup of its own choice."""
    monkeypatch.setattr(lxc, "cgroup_of", lambda _: Path("/sys/fs/cgroup/own"))
    monkeypatch.setattr(second_start, "is_start", lambda pid: pid == PID)
    monkeypatch.setattr(roots, "is_in", lambda pid, folder, *_: (pid, folder) == (PID, rootfs))
    monkeypatch.setattr(second_start, "is_on", lambda pid, folder: (pid, folder) == (PID, rootfs))


def asked(there: There, *, by_force: bool) -> None:
    abandon.abandon(there.service, abandons(gone=by_force))


@pytest.mark.parametrize("state", ["RUNNING", "STOPPED"])
def test_renamed_and_back(there: There, monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    """Its disk leads nowhere; its addresses tell it. Whoever has renamed it back, as he was told, may finish."""
    put(there, monkeypatch, "web", ITS, state)
    assert finish_here.running(there.service, Running(id=ID)) == Done(state=State.RESTORED)
    for by_force in (False, True):
        with pytest.raises(AlreadyRuns, match="already runs"):
            asked(there, by_force=by_force)
    assert there.migration.state is State.RESTORED


@pytest.mark.parametrize("how", ["once", "more often"])
@pytest.mark.parametrize("in_place", ["nothing", "another one"])
def test_what_runs_by_another_name_is_not_given_up(there: There, monkeypatch: pytest.MonkeyPatch, how: str,
                                                   in_place: str) -> None:
    put(there, monkeypatch, "shop", ITS if how == "more often" else "00:16:3e:00:00:02")
    if how == "once":
        monkeypatch.setattr(btrfs, "parent_of", lambda *_: OWN_DISK)
    if in_place == "another one":
        there.layout.container.mkdir()
        (there.layout.container / "config").write_text("lxc.uts.name = web\n")
    with pytest.raises(GoneThere) as gone:
        finish_here.running(there.service, Running(id=ID))
    assert "with mv" in gone.value.hint and "another name" in gone.value.hint
    with pytest.raises(CopyNotEnded, match=str(PID)):
        asked(there, by_force=True)
    monkeypatch.setattr(ask_source, "state_of_source", lambda *_: State.ROLLED_BACK)
    with pytest.raises(TwoCopies):
        resume_destination.go_on(BOOT, there.migration)
    assert there.migration.state is State.RESTORED


@pytest.mark.parametrize("made_of", ["another", "its"])
@pytest.mark.parametrize("name", ["web", "shop"])
def test_with_its_address_alone_it_is_another_one(there: There, monkeypatch: pytest.MonkeyPatch, name: str,
                                                  made_of: str) -> None:
    """Made anew with the address that is reserved for it, say: its disk is told, and was never this one's."""
    put(there, monkeypatch, name, ITS)
    monkeypatch.setattr(subvolume_uuids, "_having", lambda *_: {300})
    monkeypatch.setattr(subvolume_uuids, "ancestors", lambda _: iter(["removed", *[OWN_DISK] * (made_of == "its")]))
    if made_of == "another":
        asked(there, by_force=True)
        assert there.migration.arrived.given_way
        asked(there, by_force=False)  # it is not said to be back either
        return
    with pytest.raises(AlreadyRuns) if name == "web" else pytest.raises(CopyNotEnded, match=f"address .{ITS}"):
        asked(there, by_force=True)


@pytest.mark.parametrize(("here", "recorded", "anothers"), [
    ({ITS}, {ITS}, False), ({ITS}, {"00:16:3e:00:00:02"}, True), ({ITS}, set(), False), (set(), {ITS}, False),
])
def test_addresses_tell_of_another_where_both_are_known(there: There, monkeypatch: pytest.MonkeyPatch, here: set[str],
                                                        recorded: set[str], anothers: bool) -> None:
    monkeypatch.setattr(renamed, "addresses", lambda _: here)
    monkeypatch.setattr(renamed, "_its", lambda _: recorded)
    assert renamed.is_anothers(there.migration) is anothers


@pytest.mark.parametrize(("called", "told"), [
    ("web", ("web", "it runs")), ("a b", ("'a b'", "it runs under the name a b")),
    ("", ("NAME", "it runs, as process 4711,4712; /proc/4711/cgroup there shows under which name")),
])
def test_how_what_runs_is_told(there: There, monkeypatch: pytest.MonkeyPatch, called: str,
                               told: tuple[str, str]) -> None:
    monkeypatch.setattr(renamed, "called", lambda *_: called)
    assert renamed.told(there.migration, [PID, PID + 1]) == told


def test_a_disk_that_cannot_be_asked_is_not_told_to_be_its_nor_anothers(there: There,
                                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(path: Path) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(btrfs, "uuid_around", gone)
    assert not renamed._lies_in(there.pool, {OWN_DISK})
    monkeypatch.setattr(btrfs, "is_subvolume", gone)
    assert not renamed._has_another_disk(there.migration, there.layout, there.layout.container)


@pytest.mark.parametrize(("configured", "found"), [("", "web/rootfs"), ("elsewhere", "elsewhere")])
def test_where_a_root_file_system_is(there: There, configured: str, found: str) -> None:
    """Its configuration need not say it."""
    rootfs = there.pool / configured if configured else Path()
    container = cast("lxc.Container", SimpleNamespace(rootfs=rootfs, folder=there.layout.container))
    assert renamed._rootfs(container) == there.pool / found


@pytest.mark.parametrize("lives", ["another spelling", "no monitor", "takes no connection"])
def test_what_lxc_does_not_answer_for_runs_all_the_same(there: There, monkeypatch: pytest.MonkeyPatch,
                                                        lives: str) -> None:
    """Started under another spelling of the LXC path, say, or its monitor was killed: its processes tell."""
    def init_pid(container: lxc.Container) -> int:
        if lives == "takes no connection":
            raise CommandTimeout(command="A connection to LXC's monitor of shop", limit="10")
        raise ContainerNotRunning(name=container.name, lxcpath=container.lxcpath, state="STOPPED")

    put(there, monkeypatch, "shop", ITS)
    monkeypatch.setattr(lxc.Container, "init_pid", property(init_pid))
    runs_on(monkeypatch, there.pool / "shop/rootfs")
    with pytest.raises(CopyNotEnded, match=str(PID)):
        asked(there, by_force=True)
    assert there.migration.state is State.RESTORED


@pytest.mark.parametrize("its", [True, False])
def test_what_may_run_is_not_given_up(there: There, monkeypatch: pytest.MonkeyPatch, its: bool) -> None:
    """LXC's monitor is there, and takes no connection; its first process has its root elsewhere. Or somebody else
    listens in its place, and what has its root elsewhere is another container, as that one's monitor tells.
    """
    def holder(name: str, _: Path) -> None:
        if name == "shop":
            raise CommandTimeout(command="A connection to LXC's monitor of shop", limit="10")

    put(there, monkeypatch, "shop", ITS)
    monkeypatch.setattr(lxc.Container, "init_pid", property(lambda _: holder("shop", there.pool)))
    monkeypatch.setattr(monitor_socket, "holder", holder)
    btrfs_roots.are(monkeypatch, lambda _: False)
    runs_on(monkeypatch, there.pool / "elsewhere")
    monkeypatch.setattr(second_start, "is_answered_for", lambda pid, name, _: its and (pid, name) == (PID, "shop"))
    with pytest.raises(CopyNotEnded, match=str(PID)) if its else contextlib.nullcontext():
        asked(there, by_force=True)
    assert there.migration.state is (State.RESTORED if its else State.FINISHED)


@pytest.fixture
def dead(there: There, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Whose configurations were asked for; that of `db` is never answered, as it includes one from a server that is
    gone.
    """
    honest, back, reads = lxc_settings.read, threading.Event(), list[str]()

    def read(path: Path) -> lxc_settings.Config:
        reads.append(path.parent.name)
        if path.parent.name == "db":
            assert back.wait(60)
        return honest(path)

    (there.pool / "db").mkdir()
    (there.pool / "db/config").write_text(CONFIG.format(ITS))
    monkeypatch.setattr(lxc_settings, "read", read)
    monkeypatch.setattr(bounded_ask, "LIMIT", 0.3)
    before = {*threading.enumerate()}
    yield reads
    back.set()
    for thread in {*threading.enumerate()} - before:
        thread.join()


@pytest.mark.parametrize("who", ["nobody", "another container", "any user"])
def test_of_what_is_stopped_no_configuration_is_read(there: There, monkeypatch: pytest.MonkeyPatch, dead: list[str],
                                                     who: str) -> None:
    """Nor is its monitor asked, whose place any user may take, for what a user has started."""
    if who != "nobody":
        monkeypatch.setattr(lxc, "container_processes", lambda _: [PID])
        btrfs_roots.are(monkeypatch, lambda _: False)
        runs_on(monkeypatch, there.pool / "another/rootfs")
    if who == "any user":
        monkeypatch.setattr(second_start, "is_start", lambda _: False)
        monkeypatch.setattr(monitor_socket, "holder", lambda *_: pytest.fail("it is asked"))
    asked(there, by_force=True)
    assert str(there.migration.state) == "finished" and dead == []


@pytest.mark.parametrize("told", ["by its cgroup", "by its root", "by its monitor"])
def test_no_server_of_a_strangers_is_waited_for(there: There, monkeypatch: pytest.MonkeyPatch, dead: list[str],
                                                told: str) -> None:
    """It runs, so its configuration is read; and what does not answer, in time, is nothing of ours."""
    monkeypatch.setattr(lxc, "container_processes", lambda _: [PID])
    btrfs_roots.are(monkeypatch, lambda _: False)
    runs_on(monkeypatch, there.pool / ("db/rootfs" if told == "by its root" else "elsewhere"))
    if told == "by its monitor":
        monkeypatch.setattr(monitor_socket, "holder", lambda name, _: (PID, 0) if name == "db" else None)
    if told == "by its cgroup":
        monkeypatch.setattr(lxc, "cgroup_of", lambda _: Path("/sys/fs/cgroup/lxc.payload.db-1"))
    asked(there, by_force=True)
    assert str(there.migration.state) == "finished" and dead == ["db"]
    asked(there, by_force=True)
    assert dead == ["db"], "it is waited for once"


@pytest.mark.parametrize("told", ["by its addresses", "by its disk"])
def test_another_container_of_its_name_keeps_nothing_frozen(there: There, monkeypatch: pytest.MonkeyPatch,
                                                            told: str) -> None:
    put(there, monkeypatch, "web", "00:16:3e:00:00:02")
    if told == "by its disk":
        (there.layout.container / "config").write_text("lxc.uts.name = web\n")
        monkeypatch.setattr(subvolume_uuids, "_having", lambda *_: {256})
    with pytest.raises(GoneThere):
        asked(there, by_force=False)
    asked(there, by_force=True)
    assert str(there.migration.state) == "finished" and there.migration.arrived.given_way


def test_what_nothing_tells_of_is_not_given_up_while_it_runs(there: There, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it pass for what has come: its administrator stops it, or renames it."""
    put(there, monkeypatch, "web", ITS)
    (there.layout.container / "config").write_text("lxc.uts.name = web\n")
    with pytest.raises(GoneThere):
        finish_here.running(there.service, Running(id=ID))
    with pytest.raises(CopyNotEnded, match="and nothing shows whose it is"):
        asked(there, by_force=True)
    assert there.migration.state is State.RESTORED
    monkeypatch.setattr(lxc, "container_processes", lambda _: [])
    asked(there, by_force=True)
    assert str(there.migration.state) == "finished"


def test_another_container_in_a_plain_folder_keeps_nothing_frozen(there: There,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """That is nothing which lxc-copy -R would have made, nor anything brought here."""
    def ancestors(path: Path) -> Iterator[str]:
        raise NotBtrfs(path=path)

    put(there, monkeypatch, "web", ITS)
    (there.layout.container / "config").write_text("lxc.uts.name = web\n")
    (there.layout.rootfs / "uuid").unlink()
    btrfs_roots.are(monkeypatch, lambda _: False)
    monkeypatch.setattr(subvolume_uuids, "ancestors", ancestors)
    asked(there, by_force=True)
    assert str(there.migration.state) == "finished" and there.migration.arrived.given_way


@pytest.mark.parametrize("its", [True, False])
def test_what_has_given_way_is_told_by_its_addresses(there: There, monkeypatch: pytest.MonkeyPatch,
                                                     its: bool) -> None:
    """When the source asks once more: a stranger's of that name keeps it from nothing, whatever its disk is made of."""
    there.migration.note("disk", disk=lxc_disk.of(there.pool))
    asked(there, by_force=True)
    put(there, monkeypatch, "web", ITS if its else "00:16:3e:00:00:02")
    if its:
        with pytest.raises(BackThere):
            asked(there, by_force=False)
    else:
        asked(there, by_force=False)


def test_an_address_that_lxc_makes_up_is_nobodys(tmp_path: Path) -> None:
    config = tmp_path / "config"
    for index, hwaddr in enumerate(("00:16:3e:xx:xx:xx", "00:00:00:00:00:00", ITS.upper())):
        config.write_text(CONFIG.format(hwaddr))
        assert renamed.addresses(tmp_path) == ({ITS} if index == 2 else set())
