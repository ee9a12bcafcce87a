# SPDX-License-Identifier: GPL-2.0-or-later
"""How what a killed restore has left is looked at and ended: nothing of anybody else's."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import cast

import pytest

from migrator.base import boot_clock
from migrator.config import container_config
from migrator.copies import no_memory, origins, second_start
from migrator.copies.origins import Whose
from migrator.criu import ran_mark
from migrator.errors.containers import AlreadyRuns, ContainerExists, OutOfOrder
from migrator.errors.ownership import TwoCopies, WordOver
from migrator.errors.this_host import JournalBroken
from migrator.host import lxc, network
from migrator.record.journal import Migration
from migrator.record.migration_paths import Layout
from migrator.record.states import Event, State
from stages.steps import abandon, ask_source, consented, finish_here, force, restore_here, resume_destination, settling
from stages.steps.ask_source import Asking
from tests.migrator.layouts import layout_of
from tests.stages.killed_restores import Container, acts, container, fence  # noqa: F401 -- fixtures
from tests.stages.restoring import ID, restoring

__all__ = ["restoring"]
WHOSE = origins.whose  # before a test replaces it


@pytest.mark.parametrize("memory", [True, False])
def test_what_runs_is_recorded_and_completed(restoring: Migration, container: Container, acts: list[str],
                                             monkeypatch: pytest.MonkeyPatch, memory: bool) -> None:
    restoring.note("memory", memory=memory, dad={"eth0": "1"})
    monkeypatch.setattr(no_memory, "runs", lambda of, id_: (of, id_) == (container, ID))
    dad: list[object] = []
    monkeypatch.setattr(network, "bring_back_dad", lambda *args: dad.append(args))
    ran_mark.record(str(ran_mark.mark(layout_of(restoring).spool)))
    container.states = ["RUNNING"]
    container.folder.mkdir()
    monkeypatch.setattr(lxc, "processes", lambda cgroup: [4711] if cgroup == container.folder else [])
    settling.settle(restoring)
    assert str(restoring.state) == "restored" and restoring.arrived.restored_at
    assert fence(restoring) == "" and dad == [(4711, {"eth0": "1"})]
    assert acts == [*(["restore completed"] if memory else []), "announced 4711", "announced to its end"]


def test_one_that_is_not_ours_is_not_taken_for_it(restoring: Migration, container: Container, acts: list[str],
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origins, "whose", lambda *_: Whose.FOREIGN)
    monkeypatch.setattr(settling, "_has_come_up", lambda *_: True)
    monkeypatch.setattr(Layout, "is_own_rootfs", lambda _: False)
    ran_mark.record(str(ran_mark.mark(layout_of(restoring).spool)))
    settling.settle(restoring)
    assert restoring.state is State.OWNED and acts == [], "nothing of it is touched"


def unfenced_by_hand(migration: Migration, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by what writes an administrator's configurations; the root file system is the restore's all the same."""
    monkeypatch.setattr(origins, "whose", WHOSE)
    monkeypatch.setattr(Layout, "is_own_rootfs", lambda _: True)
    (migration.lxcpath / "web" / "config").write_text("lxc.uts.name = web\n")
    ran_mark.record(str(ran_mark.mark(layout_of(migration).spool)))


def test_a_fence_taken_away_while_it_runs_makes_it_nobody_elses(
    restoring: Migration, container: Container, acts: list[str], monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed when it had been let run, and before that was recorded; then its source asks to abandon it."""
    restoring.note("dad", dad={})
    unfenced_by_hand(restoring, monkeypatch)
    container.states = ["RUNNING"]
    container.folder.mkdir()
    monkeypatch.setattr(lxc, "processes", lambda cgroup: [4711])
    with pytest.raises(AlreadyRuns):
        abandon._abandon(restoring, [])
    assert str(restoring.state) == "restored" and "deleted" not in acts


def test_a_fence_taken_away_from_what_has_ended(restoring: Migration, container: Container, acts: list[str],
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    """It stands fenced again until the source was asked."""
    unfenced_by_hand(restoring, monkeypatch)
    settling.settle(restoring)
    assert str(restoring.state) == "restored" and fence(restoring) == ID and "deleted" not in acts


def test_what_runs_beside_another_container_in_its_place_keeps_the_token(
    restoring: Migration, container: Container, acts: list[str], monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its folder was renamed while it ran, and another one made."""
    monkeypatch.setattr(origins, "whose", lambda *_: Whose.FOREIGN)
    monkeypatch.setattr(lxc, "container_processes", lambda name: [1, 4711] if name == "" else [])
    monkeypatch.setattr(Layout, "is_own", lambda _, path: path == Path("/proc/4711/root"))
    ran_mark.record(str(ran_mark.mark(layout_of(restoring).spool)))
    with pytest.raises(ContainerExists):
        abandon._abandon(restoring, [])
    assert restoring.state is State.RESTORING and acts == []


@pytest.mark.parametrize("runs", [True, False])
def test_a_new_restore_takes_what_has_run_for_none_of_its_own(
    restoring: Migration, container: Container, acts: list[str], monkeypatch: pytest.MonkeyPatch, runs: bool,
) -> None:
    restoring.move(Event.RESTORE_FAILED)
    layout = layout_of(restoring)
    layout.rootfs.mkdir()
    (layout.rootfs / "written").touch()
    monkeypatch.setattr(Layout, "is_own_rootfs", lambda layout: layout.rootfs.is_dir())
    monkeypatch.setattr(settling, "_has_come_up", lambda *_: False)
    monkeypatch.setattr(lxc, "runs_in", lambda name, rootfs: runs and rootfs == layout.rootfs)
    mark = ran_mark.mark(layout.spool)
    ran_mark.record(str(mark))
    stage = restore_here.Restore.__new__(restore_here.Restore)
    stage.migration, stage.layout, stage.container = restoring, layout, cast("lxc.Container", container)
    if runs:
        with pytest.raises(AlreadyRuns):
            stage._keep_what_ran()
        assert restoring.state is State.RESTORED and ran_mark.was(mark) and layout.rootfs.is_dir()
    else:
        stage._keep_what_ran()
        assert (layout.set_aside()[0] / "written").exists() and not ran_mark.was(mark)


def test_what_has_run_needs_its_own_disk(restoring: Migration, container: Container, acts: list[str],
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Layout, "is_own_rootfs", lambda _: False)
    ran_mark.record(str(ran_mark.mark(layout_of(restoring).spool)))
    settling.settle(restoring)
    assert restoring.state is State.OWNED and acts[-1] == "deleted"


def test_a_record_that_fails_says_so(restoring: Migration, monkeypatch: pytest.MonkeyPatch,
                                     capfd: pytest.CaptureFixture[str]) -> None:
    def full(*_: object, **__: object) -> None:
        raise JournalBroken(path=restoring.journal_path, reason="full")

    monkeypatch.setattr(Migration, "move", full)
    with pytest.raises(JournalBroken):
        settling.record(restoring, 1.0)
    assert "migrator resume web" in " ".join(capfd.readouterr().err.split())


def test_after_a_reboot_it_is_started(restoring: Migration, container: Container, acts: list[str],
                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """Once that is allowed; from its disk, which nothing is taken from."""
    started: list[tuple[Migration, object]] = []
    monkeypatch.setattr(Layout, "is_own_rootfs", lambda _: True)

    def start(of: object, id_: str, *, config: Path, limit: float, log_file: Path) -> int:
        assert (config, log_file) == (Path("/run/config"), Path("/log"))
        assert 0 < limit <= no_memory.START_LIMIT and fence(restoring) == ID
        started.append((restoring, of))
        return 4711

    monkeypatch.setattr(no_memory, "start", start)
    monkeypatch.setattr(no_memory, "unfenced", lambda *_: contextlib.nullcontext(Path("/run/config")))
    mark = ran_mark.mark(layout_of(restoring).spool)
    mark.write_text("an earlier boot")
    settling.settle(restoring)
    assert started == [] and fence(restoring) == ID and "deleted" not in acts
    settling.go_on(restoring, boot_clock.now() + 3600)
    assert started == [(restoring, container)] and fence(restoring) == "" and "deleted" not in acts
    assert restoring.arrived.restored_at


def defined(migration: Migration) -> None:
    """LXC knows it."""
    folder = layout_of(migration).container
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config").touch()


@pytest.mark.parametrize(("state", "whose", "lxc_has_it", "fenced"), [
    (State.RESTORED, Whose.OURS, "STOPPED", True), (State.RESTORED, Whose.OURS, "RUNNING", False),
    (State.RESTORED, Whose.FOREIGN, "STOPPED", False), (State.RESTORING, Whose.OURS, "STOPPED", False),
    (State.FINISHED, Whose.OURS, "STOPPED", False),
])
def test_what_stands_fenced(restoring: Migration, container: Container, monkeypatch: pytest.MonkeyPatch, state: State,
                            whose: Whose, lxc_has_it: str, fenced: bool) -> None:
    monkeypatch.setattr(origins, "whose", lambda of: whose if of == layout_of(restoring) else Whose.FOREIGN)
    defined(restoring)
    restoring.state, container.states = state, [lxc_has_it]
    assert settling.stands_fenced(restoring) is fenced


def test_what_lives_on_without_its_monitor_does_not_stand(restoring: Migration, container: Container,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """LXC says that it is stopped: it was told to be started, beside the one that runs."""
    defined(restoring)
    monkeypatch.setattr(origins, "whose", lambda _: Whose.OURS)
    monkeypatch.setattr(lxc, "container_processes", lambda _: [4711])
    monkeypatch.setattr(second_start, "is_on", lambda pid, rootfs: (pid, rootfs) == (4711, layout_of(restoring).rootfs))
    restoring.state, container.states = State.RESTORED, ["STOPPED"]
    assert not settling.stands_fenced(restoring)


def test_who_looks_into_its_root_file_system_does_not_make_it_run(restoring: Migration, container: Container,
                                                                  acts: list[str],
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """LXC says that it is stopped, it is fenced, and its source may have been forced to run it again."""
    monkeypatch.setattr(lxc, "payload_processes", lambda name: [4711])
    monkeypatch.setattr(lxc, "_has_root", lambda rootfs, pids: bool(pids))
    restoring.move(Event.RESTORED)
    assert settling.stands_fenced(restoring)
    monkeypatch.setattr(lxc, "container_processes", lambda name: [4711])  # or has namespaces made for that
    with pytest.raises(OutOfOrder) as refused:
        force.finish_alone(restoring, ID, lambda: pytest.fail("the source is asked"))
    assert "migrator resume web" in refused.value.hint and restoring.state is State.RESTORED


@pytest.mark.parametrize(("state", "lives", "two"), [
    ("STOPPED", False, False), ("STOPPED", True, True), ("RUNNING", False, True),
])
def test_it_gives_way_only_where_nothing_of_it_runs(restoring: Migration, container: Container, acts: list[str],
                                                    monkeypatch: pytest.MonkeyPatch, state: str, lives: bool,
                                                    two: bool) -> None:
    """The source was forced to run it again. LXC calls stopped what has lost its monitor."""
    restoring.move(Event.RESTORED, restored_at=1.0)
    container.states = [state]
    container.folder = restoring.lxcpath / "web"
    for name in ("config", "rootfs"):
        attribute = "config_file" if name == "config" else name
        monkeypatch.setattr(container, attribute, container.folder / name, raising=False)
    monkeypatch.setattr(second_start, "on_disk", lambda *_: 4711 if lives else None)
    monkeypatch.setattr(settling, "stands_fenced", lambda _: False)
    monkeypatch.setattr(ask_source, "state_of_source", lambda *_: State.ROLLED_BACK)
    monkeypatch.setattr(finish_here, "drop_way_back", lambda _: acts.append("gave way"))
    monkeypatch.setattr(Layout, "is_own_rootfs", lambda _: True)
    if two:
        with pytest.raises(TwoCopies):
            resume_destination._complete_restored(Asking(), restoring)
    else:
        assert resume_destination._complete_restored(Asking(), restoring)
    assert ("gave way" in acts) is not two and (str(restoring.state) == "finished") is not two
    superseded = container_config.is_superseded(restoring.lxcpath / "web")
    assert superseded is (state == "STOPPED"), "LXC would start another beside what it has lost"


def test_it_goes_on_in_its_time(restoring: Migration, container: Container, acts: list[str],
                                monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr("migrator.record.image_folders.RUNTIME", restoring.lxcpath / "run")
    monkeypatch.setattr(container, "config_file", restoring.lxcpath / "web" / "config", raising=False)
    given: list[str] = []

    def start(of: object, id_: str, *, config: Path, **_: object) -> None:
        started.append((of, id_))
        given.append(config.read_text())

    monkeypatch.setattr(no_memory, "start", start)
    monkeypatch.setattr(boot_clock, "now", lambda: 1000.0)
    restoring.note("settled", had_stopped="boot")
    with monkeypatch.context() as none, pytest.raises(WordOver) as over:
        none.setattr(consented, "confine", lambda _: pytest.fail("it is changed, and not started"))
        settling.go_on(restoring, 999.5)
    assert (over.value.fields["name"], over.value.fields["next"]) == ("web", "migrator resume web")
    assert fence(restoring) == ID and started == []
    settling.go_on(restoring, 1000.0)
    assert fence(restoring) == "" and started == [(container, ID)] and not restoring.arrived.had_stopped
    hooks = [each.split()[0] for each in given[0].split("lxc.hook.")[1:]]
    assert hooks == ["pre-start", "start-host"], "kept busy by another hook, it refuses itself when its time is over"
