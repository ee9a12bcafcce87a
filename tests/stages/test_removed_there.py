# SPDX-License-Identifier: GPL-2.0-or-later
"""What has arrived is removed on the destination: while it is restored, or when it has run there."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from migrator.base import boot_clock
from migrator.config import container_config
from migrator.copies import no_memory, origins
from migrator.criu import criu_dump, ran_mark, restore
from migrator.errors.containers import AlreadyRuns, GoneThere, OutOfOrder
from migrator.errors.memory import CopyNotEnded
from migrator.errors.outcomes import SourceStillStopped
from migrator.host import btrfs, empty_cgroups, lxc
from migrator.record import lxc_disk
from migrator.record.journal import Migration
from migrator.record.migration_paths import Layout
from migrator.record.next_commands import this_host
from migrator.record.states import Event, State
from migrator.transfer.messages import Done, Running
from stages.steps import (
    abandon,
    ask_source,
    finish_here,
    force,
    left_running,
    restore_here,
    resume_destination,
    settling,
)
from stages.steps.ask_source import Asking
from tests import btrfs_roots
from tests.migrator.layouts import layout_of
from tests.stages.asks import abandons
from tests.stages.removals import asked, no_lxc  # noqa: F401 -- a fixture
from tests.stages.restoring import ID, mark, restoring

__all__ = ["restoring"]


@contextlib.contextmanager
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"]) as made:
        try:
            yield made
        finally:
            made.kill()


@pytest.mark.parametrize("typed", [True, False])
def test_one_that_was_removed_while_it_was_restored_is_given_back(restoring: Migration, typed: bool) -> None:
    restoring.note("rounds", rounds=[])
    if typed:
        abandon.give_up_here(restoring)
    else:
        abandon._abandon(restoring, [])
    assert restoring.state is State.ABANDONED


@pytest.mark.parametrize("memory", [True, False])
def test_what_is_left_of_it_is_ended(restoring: Migration, monkeypatch: pytest.MonkeyPatch, memory: bool) -> None:
    """CRIU by the images folder, what was restored by its root, and nothing else in such a cgroup."""
    restoring.note("memory", memory=memory)
    ended: list[object] = []
    left: list[object] = []
    monkeypatch.setattr(restore, "clear", left.append)
    with process() as own, process() as other, process() as of_criu:
        monkeypatch.setattr(empty_cgroups, "drop", lambda *given: left.append((given[0], own.poll() is not None)))
        monkeypatch.setattr(criu_dump, "processes", lambda _: [of_criu.pid])
        monkeypatch.setattr(lxc, "container_processes",
                            lambda name: [pid for pid in (own.pid, other.pid) if Path(f"/proc/{pid}/root/.").exists()])
        monkeypatch.setattr(Layout, "is_own",
                            lambda _, path: path == Path(f"/proc/{own.pid}/root") and own.poll() is None)
        monkeypatch.setattr(Layout, "is_made_of", lambda here, path, _: here.is_own(path))
        monkeypatch.setattr(no_memory, "end", lambda of, id_: ended.append((of.name, of.lxcpath, id_)))
        settling.settle(restoring)
        assert own.wait(10) == of_criu.wait(10) == -signal.SIGKILL
        assert other.poll() is None
    assert restoring.state is State.OWNED
    assert ended == ([] if memory else [("web", restoring.lxcpath, ID)])
    assert left == [("web", True), layout_of(restoring)], "of what has ended"


def test_a_container_made_of_an_earlier_round_to_try_it_is_not_ended(restoring: Migration,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the last increment becomes a restore's root file system; two rounds have arrived before it."""
    restoring.note("rounds", rounds=[{"uuid": "one"}, {"uuid": "two"}])
    with process() as tried, process() as restored:
        parents = {f"/proc/{tried.pid}/root": "round 2", f"/proc/{restored.pid}/root": "round 3"}
        for number in (1, 2, 3):
            parents[str(layout_of(restoring).snapshot(number))] = ""
        monkeypatch.setattr(btrfs, "is_subvolume", lambda path: str(path) in parents)
        monkeypatch.setattr(btrfs, "info", lambda path: SimpleNamespace(
            uuid=f"round {path.suffix[1:]}", parent_uuid=parents[str(path)]))
        monkeypatch.setattr(lxc, "container_processes", lambda _: [
            each.pid for each in (tried, restored) if each.poll() is None])
        assert left_running.kill(layout_of(restoring), 3) == []
        assert (tried.poll(), restored.wait(10)) == (None, -signal.SIGKILL)


def test_nothing_is_ended_while_the_increment_is_not_there(restoring: Migration,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    """No restore has made anything by then."""
    monkeypatch.setattr(btrfs, "is_subvolume", lambda path: path.name == "root")
    monkeypatch.setattr(lxc, "container_processes", lambda _: [os.getpid()])
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("something is ended"))
    assert left_running.kill(layout_of(restoring), 1) == []


def test_what_cannot_be_asked_is_not_ended(restoring: Migration, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be a container that somebody is trying out."""
    def is_subvolume(path: Path) -> bool:
        if path == Path(f"/proc/{os.getpid()}/root"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return True

    monkeypatch.setattr(btrfs, "is_subvolume", is_subvolume)
    monkeypatch.setattr(lxc, "container_processes", lambda _: [os.getpid()])
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("something is ended"))
    assert left_running.kill(layout_of(restoring), 1) == []


def test_nothing_is_recorded_as_long_as_it_does_not_end(restoring: Migration, monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(lxc, "container_processes", lambda name: [4711])
    monkeypatch.setattr(Layout, "is_own", lambda _, path: path == Path("/proc/4711/root"))
    monkeypatch.setattr(Layout, "is_made_of", lambda here, path, _: here.is_own(path))
    monkeypatch.setattr(os, "kill", lambda *args: killed.append(args))
    with pytest.raises(CopyNotEnded, match="4711"):
        settling.settle(restoring)
    assert restoring.state is State.RESTORING and killed[0] == (4711, signal.SIGKILL)


def test_what_may_have_run_is_not_taken_away_with_its_configuration(restoring: Migration,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    mark(restoring)
    layout_of(restoring).rootfs.mkdir(parents=True)
    with process() as made:
        monkeypatch.setattr(lxc, "container_processes", lambda _: [made.pid] if made.poll() is None else [])
        monkeypatch.setattr(Layout, "is_own", lambda layout, path: path in (layout.rootfs,
                                                                            Path(f"/proc/{made.pid}/root")))
        monkeypatch.setattr(Layout, "is_made_of", lambda here, path, _: here.is_own(path))
        settling.settle(restoring)
        assert made.wait(10) == -signal.SIGKILL
    assert restoring.state is State.RESTORED
    assert layout_of(restoring).rootfs.is_dir() and ran_mark.was(ran_mark.mark(layout_of(restoring).spool))


@pytest.mark.parametrize("gone", ["its mark", "its root file system"])
def test_what_never_ran_or_is_gone_altogether_has_not_been_restored(restoring: Migration,
                                                                    monkeypatch: pytest.MonkeyPatch,
                                                                    gone: str) -> None:
    deleted: list[Layout] = []
    monkeypatch.setattr(settling, "give_back_rootfs", deleted.append)
    if gone == "its mark":
        layout_of(restoring).rootfs.mkdir(parents=True)
        monkeypatch.setattr(Layout, "is_own", lambda layout, path: path == layout.rootfs)
    else:
        mark(restoring)
    settling.settle(restoring)
    assert restoring.state is State.OWNED and deleted == [layout_of(restoring)]
    assert not ran_mark.was(ran_mark.mark(layout_of(restoring).spool))


def test_it_is_removed_while_the_increment_is_received(restoring: Migration, monkeypatch: pytest.MonkeyPatch) -> None:
    restoring.move(Event.RESTORE_FAILED)
    restoring.note("rounds", rounds=[{"uuid": "x"}], dad={}, memory=False, increment_uuid="u")
    folder = layout_of(restoring).container
    folder.mkdir()
    container_config.fence(folder, "lxc.uts.name = web\n", ID, "no")
    assert origins.whose(layout_of(restoring)).may_go
    monkeypatch.setattr(lxc, "_lxc", lambda: SimpleNamespace(Container=lambda *_: SimpleNamespace(state="STOPPED")))

    def receive(*_: object) -> Any:
        shutil.rmtree(folder)
        return SimpleNamespace(path=layout_of(restoring).snapshot(2))

    def snapshot(_source: Path, target: Path, **_: object) -> None:
        target.mkdir()

    monkeypatch.setattr(restore_here, "receive", receive)
    monkeypatch.setattr(btrfs, "snapshot", snapshot)
    with pytest.raises(SourceStillStopped):
        restore_here.Restore(restoring, 100.0, leave=lambda: boot_clock.now() + 100).run()
    assert str(restoring.state) == "owned"
    abandon._abandon(restoring, [])
    assert str(restoring.state) == "abandoned"


def test_one_that_ran_and_was_removed_is_given_back_only_by_force(restoring: Migration) -> None:
    restoring.note("rounds", rounds=[])
    restoring.move(Event.RESTORED)
    asks: tuple[Callable[[], object], ...] = (lambda: finish_here.running(asked(restoring), Running(id=ID)),
                                              lambda: abandon.abandon(asked(restoring), abandons()))
    for request in asks:
        with pytest.raises(GoneThere, match="no longer there") as error:
            request()
        assert error.value.fields == {"name": "web", "destination": this_host(), "source": "hosta",
                                      "next": f"migrator rollback web --force {ID}   (on hosta)"}
        assert error.value.fields["next"] in error.value.hint
    with pytest.raises(GoneThere):
        abandon.give_up_here(restoring)
    assert restoring.state is State.RESTORED
    assert abandon.abandon(asked(restoring), abandons(gone=True)).known is True
    assert str(restoring.state) == "finished" and restoring.arrived.given_way
    with pytest.raises(OutOfOrder, match="has yielded") as given:  # the answer was lost: the source's copy goes on
        finish_here.running(asked(restoring), Running(id=ID))
    assert given.value.fields["next"] == "migrator rollback web   (on hosta)"
    assert abandon.abandon(asked(restoring), abandons()).known is True


def test_what_runs_without_its_configuration_is_not_given_back(restoring: Migration,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    restoring.move(Event.RESTORED)
    monkeypatch.setattr(settling, "lives_on", lambda _: True)
    assert finish_here.running(asked(restoring), Running(id=ID)) == Done(state=State.RESTORED)
    with pytest.raises(AlreadyRuns, match="already runs"):
        abandon.abandon(asked(restoring), abandons(gone=True))


def test_finish_is_asked_for_once_more_when_it_has_moved_on(restoring: Migration) -> None:
    restoring.move(Event.RESTORED)
    restoring.move(Event.FINISHED)
    assert finish_here.running(asked(restoring), Running(id=ID)) == Done(state=State.FINISHED)


def test_what_runs_in_any_cgroup_was_not_removed_for_good(restoring: Migration,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """As with lxc.cgroup.dir, where its folder was renamed while it runs."""
    restoring.move(Event.RESTORED)
    with process() as made:
        monkeypatch.setattr(lxc, "_rooted_elsewhere", lambda: iter([made.pid]))
        monkeypatch.setattr(lxc, "pid_namespace", str)
        monkeypatch.setattr(Layout, "is_own", lambda _, path: path == Path(f"/proc/{made.pid}/root"))
        assert not settling.is_gone(restoring)
        monkeypatch.setattr(lxc, "_rooted_elsewhere", lambda: iter([]))
        assert settling.is_gone(restoring)


def test_what_runs_by_another_name_was_not_removed(restoring: Migration, monkeypatch: pytest.MonkeyPatch,
                                                   tmp_path: Path) -> None:
    restoring.move(Event.RESTORED)
    (tmp_path / "cgroup" / "lxc.payload.shop").mkdir(parents=True)
    with process() as made:
        (tmp_path / "cgroup" / "lxc.payload.shop" / "cgroup.procs").write_text(f"{made.pid}\n")
        monkeypatch.setattr(Layout, "is_own", lambda _, path: path == Path(f"/proc/{made.pid}/root"))
        assert not settling.is_gone(restoring)


def test_a_process_that_ends_while_it_is_looked_at_does_not_live(restoring: Migration,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def ended(_: Layout, path: Path) -> bool:
        if path != Path("/proc/4711/root"):
            return False
        asked.append(path)
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))

    restoring.move(Event.RESTORED)
    monkeypatch.setattr(lxc, "container_processes", lambda _: [4711])
    btrfs_roots.are(monkeypatch, lambda _: True)
    monkeypatch.setattr(Layout, "is_own", ended)
    assert settling.is_gone(restoring) and asked


def test_a_configuration_that_cannot_be_reached_was_not_removed(restoring: Migration) -> None:
    """A link to a disk that is not mounted yet."""
    folder = layout_of(restoring).container
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config").symlink_to("/not/mounted/config")
    assert not lxc_disk.is_removed(layout_of(restoring))


def test_what_was_removed_is_not_finished_by_force(restoring: Migration) -> None:
    """The last copy is the source's."""
    restoring.move(Event.RESTORED)
    with pytest.raises(GoneThere):
        force.finish_alone(restoring, ID, lambda: pytest.fail("the source is asked"))
    assert restoring.state is State.RESTORED


def test_one_that_is_not_there_does_not_stand_fenced(restoring: Migration) -> None:
    """So what was removed after the source has ended its copy can be finished there."""
    restoring.move(Event.RESTORED)
    assert not settling.stands_fenced(restoring)


@pytest.mark.parametrize("taken_back", [False, True])
def test_resume_there(restoring: Migration, monkeypatch: pytest.MonkeyPatch, taken_back: bool) -> None:
    restoring.move(Event.RESTORED)
    monkeypatch.setattr(ask_source, "state_of_source", lambda *_: State.ROLLED_BACK if taken_back else State.DUMPED)
    args = Asking()
    if taken_back:
        assert resume_destination.go_on(args, restoring).data["state"] is State.FINISHED
    else:
        with pytest.raises(GoneThere):
            resume_destination.go_on(args, restoring)


@pytest.mark.parametrize("now", ["lives", "ended", "ended, and taken back"])
def test_resume_there_where_its_configuration_alone_was_removed(restoring: Migration, monkeypatch: pytest.MonkeyPatch,
                                                                now: str) -> None:
    """At boot too, every minute: what cannot be read because it is not there is no error. Nor is one made anew."""
    restoring.note("rounds", rounds=[])
    restoring.move(Event.RESTORED)
    here = layout_of(restoring)
    here.rootfs.mkdir(parents=True)
    monkeypatch.setattr(Layout, "is_own_rootfs", lambda _: True)
    monkeypatch.setattr(settling, "lives_on", lambda _: now == "lives")
    back = now == "ended, and taken back"
    monkeypatch.setattr(ask_source, "state_of_source", lambda *_: State.ROLLED_BACK if back else State.DUMPED)
    done = resume_destination.go_on(Asking(), restoring)
    assert done.data["state"] is (State.FINISHED if back else State.RESTORED)
    assert here.rootfs.is_dir() and not (here.container / "config").exists()
