# SPDX-License-Identifier: GPL-2.0-or-later
"""What a failed or killed restore has left is ended, wherever it is by now: nothing of anybody else's."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from migrator.config import container_config
from migrator.copies import origins
from migrator.copies.origins import Whose
from migrator.criu import criu_dump, ran_mark
from migrator.errors.memory import CopyNotEnded
from migrator.host import lxc
from migrator.record.journal import Migration
from migrator.record.migration_paths import Layout
from migrator.record.states import State
from stages.steps import abandon, left_running, settling
from tests.migrator.layouts import layout_of
from tests.stages.killed_restores import Container, acts, container, fence
from tests.stages.restoring import ID, restoring

__all__ = ["acts", "container", "restoring"]


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    """One that leads a group with a child in it, and two that are in the tests' own group."""
    made = [subprocess.Popen(["sh", "-c", "sleep 600 & echo; wait"], stdout=subprocess.PIPE, process_group=0),
            subprocess.Popen(["sleep", "600"]), subprocess.Popen(["sleep", "600"])]
    assert made[0].stdout
    made[0].stdout.readline()  # its child has begun
    yield made
    with contextlib.suppress(ProcessLookupError):
        os.killpg(made[0].pid, signal.SIGKILL)  # its child too
    for each in made:
        each.kill()
        each.wait()


def has_ended(pid: int) -> bool:
    """Or is a zombie, whose new parent takes its time."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].startswith(b"Z")
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("own", [True, False])
def test_only_what_belongs_to_it_is_ended(restoring: Migration, container: Container, acts: list[str],
                                          processes: list[subprocess.Popen[bytes]],
                                          monkeypatch: pytest.MonkeyPatch, own: bool) -> None:
    """Its root file system was moved away, or is put aside since; or it is an earlier stay's, where somebody works."""
    leader, half_restored, stranger = processes
    monkeypatch.setattr(Layout, "is_own_rootfs", lambda _: False)
    (child,) = (int(each) for each in Path(f"/proc/{leader.pid}/task/{leader.pid}/children").read_text().split())
    layout = layout_of(restoring)
    monkeypatch.setattr(criu_dump, "processes", lambda folders: [leader.pid] if folders == layout.dumped_into() else [])
    live_in(monkeypatch, own=[half_restored] if own else [], others=[stranger] if own else [half_restored, stranger])
    monkeypatch.setattr(Layout, "own_snapshots", lambda here: [here.snapshot(1)])
    monkeypatch.setattr(lxc, "processes", lambda cgroup: [half_restored.pid] if cgroup == container.folder else [])
    container.states = ["RUNNING", "RUNNING", "STOPPED"]
    container.folder.mkdir()
    assert settling.end(restoring, cast("lxc.Container", container), layout) is True
    assert leader.wait(60) == -signal.SIGKILL and stranger.poll() is None
    assert (half_restored.wait(60) == -signal.SIGKILL) if own else half_restored.poll() is None
    while not has_ended(child):
        time.sleep(0.01)
    killed = container.folder / "cgroup.kill"
    assert killed.exists() is own and (not own or killed.read_text() == "1")
    assert acts == ["cgroups dropped web guests", "restore cleared"]
    assert container.states == (["STOPPED"] if own else ["RUNNING", "STOPPED"]), "another's end is not waited for"
    assert fence(restoring) == ID
    assert "lxc.uts.name = web" in (layout.container / "config").read_text()
    hook = (layout.container / container_config.FENCE_HOOK).read_text()
    assert "web is being moved here; see: migrator status web" in hook


def live_in(monkeypatch: pytest.MonkeyPatch, *, own: list[subprocess.Popen[bytes]],
            others: list[subprocess.Popen[bytes]]) -> None:
    """These are a container's: some live in a subvolume that the migration has made, some do not."""
    roots = [Path(f"/proc/{each.pid}/root") for each in own]
    monkeypatch.setattr(lxc, "container_processes", lambda name: [
        each.pid for each in (*own, *others) if name == "web" and each.poll() is None])
    monkeypatch.setattr(Layout, "is_own", lambda _, path: path in roots)
    monkeypatch.setattr(Layout, "is_made_of", lambda _, path, number: path in roots and number == 1)


@pytest.mark.parametrize("removed", [True, False])
def test_nothing_is_recorded_as_long_as_it_lives_in_a_root_file_system_that_was_moved_away(
    restoring: Migration, container: Container, acts: list[str], processes: list[subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch, removed: bool,
) -> None:
    """The kernel cannot interrupt it: what stands in its place is fenced again, and the token stays."""
    killed: list[object] = []
    monkeypatch.setattr(lxc, "STOP_LIMIT", 0.05)
    monkeypatch.setattr(Layout, "is_own_rootfs", lambda _: False)
    live_in(monkeypatch, own=processes[1:2], others=processes[2:])
    if removed:
        (layout_of(restoring).container / "config").unlink()
    else:
        container_config.unfence(layout_of(restoring).container, ID)
    with monkeypatch.context() as uninterruptible, pytest.raises(CopyNotEnded) as error:
        uninterruptible.setattr("stages.steps.left_running.os.kill", lambda *args: killed.append(args))
        abandon._abandon(restoring, [])
    assert f"migration {ID}: {processes[1].pid}." in str(error.value) and "migrator resume web" in error.value.hint
    assert set(killed) == {(processes[1].pid, signal.SIGKILL)}
    assert restoring.state is State.RESTORING and "deleted" not in acts
    assert removed or fence(restoring) == ID


def test_what_runs_in_one_that_was_put_aside_is_not_ended(
    restoring: Migration, container: Container, acts: list[str], processes: list[subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Somebody has it started, as a container of its own, for what it had written."""
    kept = layout_of(restoring).aside()
    kept.symlink_to("/")  # where these processes live
    live_in(monkeypatch, own=processes[1:2], others=[])
    settling.clear(restoring)
    assert processes[1].poll() is None and "deleted" in acts


def test_who_leads_no_group_is_ended_alone(restoring: Migration, container: Container, acts: list[str],
                                           processes: list[subprocess.Popen[bytes]],
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    _, member, other = processes
    monkeypatch.setattr(criu_dump, "processes", lambda _: [member.pid])
    settling.end(restoring, cast("lxc.Container", container), layout_of(restoring))
    assert member.wait(60) == -signal.SIGKILL and other.poll() is None


def test_one_that_has_ended_meanwhile_is_ended(restoring: Migration, container: Container, acts: list[str],
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    monkeypatch.setattr(criu_dump, "processes", lambda _: [gone.pid])
    monkeypatch.setattr(Layout, "is_own_rootfs", lambda _: True)
    monkeypatch.setattr(Layout, "is_made_of", lambda *_: True)
    looks = [[gone.pid]]
    monkeypatch.setattr(lxc, "container_processes", lambda _: looks.pop() if looks else [])
    container.states = ["ABORTING"]
    assert settling.end(restoring, cast("lxc.Container", container), layout_of(restoring)) is True
    assert "restore cleared" in acts and not looks


def test_another_container_in_its_place_is_left_alone(restoring: Migration, container: Container, acts: list[str],
                                                      processes: list[subprocess.Popen[bytes]],
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """CRIU, which is known by the images folder, is ended all the same."""
    leader, stranger, _ = processes
    monkeypatch.setattr(origins, "whose", lambda *_: Whose.FOREIGN)
    monkeypatch.setattr(criu_dump, "processes", lambda _: [leader.pid])
    live_in(monkeypatch, own=[], others=[stranger])
    container.states = ["RUNNING"]
    container.folder.mkdir()
    settling.clear(restoring)
    assert leader.wait(60) == -signal.SIGKILL and stranger.poll() is None
    assert acts == [] and not (container.folder / "cgroup.kill").exists()


@pytest.mark.parametrize("memory", [True, False])
def test_without_memory_its_start_is_ended(restoring: Migration, container: Container, acts: list[str],
                                           memory: bool) -> None:
    restoring.note("memory", memory=memory)
    ran_mark.record(str(ran_mark.mark(layout_of(restoring).spool)))
    settling.clear(restoring)
    assert acts == [*([] if memory else [f"start ended {ID}"]), "cgroups dropped web guests", "restore cleared",
                    "deleted"]
    assert not ran_mark.was(ran_mark.mark(layout_of(restoring).spool))


def test_what_ends_while_it_is_looked_at_does_not_live_on(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    monkeypatch.setattr(lxc, "container_processes", lambda _: [os.getpid(), gone.pid])
    assert left_running.live_in("web", Path("/")) == [os.getpid()]


def test_the_wait_for_its_end_has_one(container: Container) -> None:
    container.states = ["RUNNING"]
    left_running.wait_stopped(cast("lxc.Container", container), 0.05)
    for ended in ("STOPPED", "ABORTING"):
        container.states = ["RUNNING", "STOPPING", ended, "not looked at", "any more"]
        left_running.wait_stopped(cast("lxc.Container", container))
        assert container.states == ["not looked at", "any more"]


def test_what_lxc_does_not_have_any_more_is_nobody_elses(restoring: Migration, container: Container, acts: list[str],
                                                         capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing is in its cgroup, and LXC is waited for until it says so."""
    container.states = ["STOPPING", "STOPPED"]
    assert settling.end(restoring, cast("lxc.Container", container), layout_of(restoring)) is True
    assert container.states == ["STOPPED"] and "left alone" not in capfd.readouterr().err


def test_what_does_not_end_is_not_forgotten_for_what_a_start_has_left(
        restoring: Migration, container: Container, acts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    restoring.note("memory", memory=False)
    monkeypatch.setattr(left_running, "kill", lambda *_: [4711])
    monkeypatch.setattr(left_running, "live_below", lambda _: [])
    with pytest.raises(CopyNotEnded, match="4711"):
        settling.end(restoring, cast("lxc.Container", container), layout_of(restoring))


@pytest.mark.parametrize(("own", "let", "told"), [
    (True, True, True), (True, False, True), (False, False, True), (False, True, False),
])
def test_where_nothing_tells_whose_it_is_nothing_is_concluded(
        restoring: Migration, monkeypatch: pytest.MonkeyPatch, own: bool, let: bool, told: bool) -> None:
    monkeypatch.setattr(Layout, "is_own_rootfs", lambda _: own)
    monkeypatch.setattr(left_running, "live_in", lambda *_: [4711])
    if let:
        ran_mark.record(str(ran_mark.mark(layout_of(restoring).spool)))
    assert settling._live_untold(layout_of(restoring)) == ([] if told else [4711])
