# SPDX-License-Identifier: GPL-2.0-or-later
"""What was brought to a stand on the source runs there again, past its fence: its destination is given no word."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path
from typing import cast

import pytest

from migrator.config import container_config
from migrator.copies import bases, origins, remains, second_start, standing
from migrator.errors.containers import ContainerChanged, ContainerNotFound, OutOfOrder
from migrator.errors.outcomes import SourceStateUnknown, SourceStoppedUnknown
from migrator.host import lxc
from migrator.record import container_lock
from migrator.record.journal import Journal
from migrator.record.states import Event, State
from migrator.remote.answering import Service
from migrator.transfer.messages import AskSourceState
from migrator.transfer.rpc import Connection
from stages.steps import ask_source, drive_stages, end_copy, offer
from stages.steps.drive_move import Move
from stages.steps.dump import Dump
from stages.steps.options import MoveOptions
from tests.stages.journals import journal  # noqa: F401 -- a fixture
from tests.stages.monitorless import cgroup, frozen, init  # noqa: F401 -- fixtures
from tests.stages.standing import OTHER_BOOT, REQUEST, Known, There, config, handed_over, known, offers_again  # noqa: F401 -- a fixture


@pytest.mark.parametrize("memory", [True, False])
def test_a_lost_offer_is_not_made_again_where_a_reboot_has_started_it(
        journal: Journal, cgroup: Path, init: subprocess.Popen[bytes], known: type[Known], memory: bool) -> None:
    migration = handed_over(journal, cgroup, init.pid, fence=False, boot=OTHER_BOOT, memory=memory)
    known.pid = init.pid
    there = There()
    with pytest.raises(OutOfOrder, match="runs on") as raised:
        offers_again(migration, there)
    assert there.asked == ["state"] and migration.state is State.OFFERED
    assert raised.value.hint == "Next: migrator rollback web"
    assert container_config.fence_of(config(migration).read_text()) == migration.id


def test_the_driver_rolls_back_by_itself(journal: Journal, cgroup: Path, init: subprocess.Popen[bytes],
                                         known: type[Known]) -> None:
    migration = handed_over(journal, cgroup, init.pid, boot=OTHER_BOOT)
    known.pid = init.pid
    with pytest.raises(OutOfOrder) as raised:
        offers_again(migration, There(), one_shot=True)
    assert raised.value.hint == "Next: migrator migrate web -d root@hostb"


def test_what_still_stands_is_offered_again(journal: Journal, cgroup: Path, init: subprocess.Popen[bytes],
                                            known: type[Known]) -> None:
    """Also where its fence is gone: that is put back first."""
    migration = handed_over(journal, cgroup, init.pid, fence=False)
    known.pid = init.pid
    there = There()
    offers_again(migration, there)
    assert there.asked == ["state", "own"] and there.told > 0 and migration.state is State.DUMPED
    assert container_config.fence_of(config(migration).read_text()) == migration.id
    assert "is being moved to hostb" in (config(migration).parent / container_config.FENCE_HOOK).read_text()


@pytest.mark.parametrize(("memory", "unknown"), [(True, SourceStateUnknown), (False, SourceStoppedUnknown)])
def test_no_word_is_given_for_what_was_started_since_the_offer(
        journal: Journal, cgroup: Path, init: subprocess.Popen[bytes], known: type[Known], memory: bool,
        unknown: type[Exception]) -> None:
    migration = handed_over(journal, cgroup, init.pid, boot=OTHER_BOOT, memory=memory)
    known.pid = init.pid
    there = There()
    with pytest.raises(unknown):
        offer.make(migration, cast("Connection", there))
    assert there.told == -1.0 and migration.state is State.OFFERED


def test_nor_is_it_let_run_there_by_the_driver(journal: Journal, cgroup: Path, init: subprocess.Popen[bytes],
                                               known: type[Known]) -> None:
    migration = handed_over(journal, cgroup, init.pid, boot=OTHER_BOOT)
    migration.move(Event.TAKEN)
    known.pid = init.pid
    move = Move("migrate", REQUEST, MoveOptions(), journal, lxc.Container("web", migration.lxcpath), migration)
    there = There(State.OWNED)
    with pytest.raises(OutOfOrder):
        drive_stages.restore_dump(move, cast("Connection", there))
    assert there.asked == []


def test_who_asks_whether_he_may_let_it_run_hears_that_it_runs(
        journal: Journal, cgroup: Path, init: subprocess.Popen[bytes], known: type[Known],
        monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(container_lock, "LOCKS", tmp_path / "lock")
    migration = handed_over(journal, cgroup, init.pid, boot=OTHER_BOOT)
    migration.move(Event.TAKEN)
    before = migration.handover.leave
    known.pid = init.pid
    with contextlib.ExitStack() as stack:
        service = Service(journal, stack)
        with pytest.raises(OutOfOrder, match="runs on"):
            ask_source.source_state(service, AskSourceState(id=migration.id, within=90.0))
        with pytest.raises(OutOfOrder, match=r"^restore-dump cannot run now: .* runs on"):
            offer.word(migration)
        migration.refresh()
        assert migration.handover.leave == before
        assert ask_source.source_state(service, AskSourceState(id=migration.id)).state is State.DUMPED
        known.pid = 0
        assert ask_source.source_state(service, AskSourceState(id=migration.id, within=90.0)).leave == 90.0


# --- what counts as that --------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [True, False])
def test_it_was_thawed_by_somebody(journal: Journal, cgroup: Path, init: subprocess.Popen[bytes],
                                   known: type[Known], memory: bool) -> None:
    migration = handed_over(journal, cgroup, init.pid, memory=memory)
    known.pid = init.pid
    assert standing.runs(migration) is not memory  # stopped, it is not there at all
    (cgroup / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    assert standing.runs(migration) is not memory, "on its way back into the freeze, as CRIU has let go of it"
    (cgroup / "cgroup.freeze").write_text("0\n")
    assert standing.runs(migration) and not standing.started_anew(migration)
    (cgroup / "cgroup.freeze").unlink()  # it ends at this moment
    assert standing.runs(migration) is not memory


def test_beside_the_frozen_one_another_was_started(journal: Journal, cgroup: Path, init: subprocess.Popen[bytes],
                                                   known: type[Known]) -> None:
    """Its monitor was killed, so LXC let it be started."""
    migration = handed_over(journal, cgroup, init.pid)
    assert not standing.runs(migration)
    with subprocess.Popen(["sleep", "1000"]) as second:
        known.pid = second.pid
        assert standing.started_anew(migration)
        second.kill()


@pytest.mark.parametrize("there", [True, False])
def test_what_runs_without_a_monitor_is_told_by_its_root(
        journal: Journal, cgroup: Path, init: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch,
        there: bool) -> None:
    """Also where its configuration has been removed."""
    migration = handed_over(journal, cgroup, init.pid, boot=OTHER_BOOT)
    asked: list[Path] = []

    def on_disk(_name: str, _lxcpath: Path, rootfs: Path, *_: object) -> int:
        asked.append(rootfs)
        return 7

    monkeypatch.setattr(second_start, "on_disk", on_disk)
    if not there:
        class Missing(Known):
            def __init__(self, name: str, lxcpath: Path) -> None:
                raise ContainerNotFound(name=name, lxcpath=lxcpath)

        monkeypatch.setattr(lxc, "Container", Missing)
        config(migration).unlink()
    assert standing.runs(migration)
    assert asked == [Known.rootfs if there else migration.lxcpath / "web" / "rootfs"]


def test_while_it_is_being_started(journal: Journal, cgroup: Path, init: subprocess.Popen[bytes],
                                   known: type[Known], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "state", "STARTING")
    assert standing.runs(handed_over(journal, cgroup, init.pid, boot=OTHER_BOOT))


def test_another_container_of_its_name_is_nothing_to_it(
        journal: Journal, cgroup: Path, init: subprocess.Popen[bytes], known: type[Known],
        monkeypatch: pytest.MonkeyPatch) -> None:
    migration = handed_over(journal, cgroup, init.pid, fence=False, boot=OTHER_BOOT)
    monkeypatch.setattr(origins, "is_source", lambda _: False)
    known.pid = init.pid
    standing.require(migration, "restore-dump")
    assert config(migration).read_text() == "lxc.start.auto = 1\n"


# --- before the offer, and at the end -------------------------------------------------------------------------


def test_a_dump_of_what_was_thawed_meanwhile_is_not_offered(
        journal: Journal, cgroup: Path, init: subprocess.Popen[bytes]) -> None:
    class Clock:
        def stop_clock(self) -> bool:
            return False

    dump = Dump.__new__(Dump)
    dump.migration, dump.container = frozen(journal, cgroup, init.pid), lxc.Container("web", journal.path.parent)
    dump.watchdog = Clock()  # type: ignore[assignment]
    dump.stop_clock()
    (cgroup / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    dump.stop_clock()
    (cgroup / "cgroup.freeze").write_text("0\n")
    assert remains.was_thawed(dump.migration)
    with pytest.raises(ContainerChanged, match="someone thawed it"):
        dump.stop_clock()


@pytest.mark.parametrize("finishing", [True, False])
def test_no_end_is_recorded_where_a_second_one_runs(
        journal: Journal, cgroup: Path, init: subprocess.Popen[bytes], known: type[Known], finishing: bool) -> None:
    """It is not killed: somebody has started it. But nor is it let go on being started."""
    migration = handed_over(journal, cgroup, init.pid, fence=False, boot=OTHER_BOOT)
    for event in (Event.TAKEN, Event.FINISH) if finishing else (Event.TAKEN,):
        migration.move(event)
    state = migration.state
    known.pid = init.pid
    there = There(State.RESTORED)
    with pytest.raises(OutOfOrder, match="started it here too") as raised:
        end_copy.carry_out(migration, cast("Connection", there))
    assert there.asked == ["state", "running"] and migration.state is state
    assert raised.value.hint == f"Next: lxc-stop -P {migration.lxcpath} -n web -- and then: migrator finish web"
    hook = (config(migration).parent / container_config.FENCE_HOOK).read_text()
    assert (container_config.SUPERSEDED in hook) is finishing
    assert init.poll() is None and container_config.fence_of(config(migration).read_text()) == migration.id


@pytest.mark.parametrize(("thawed", "lxc_knows"), [(True, "it"), (True, "nothing"), (True, "another"), (False, "it")])
def test_what_somebody_has_thawed_is_not_ended(journal: Journal, cgroup: Path, init: subprocess.Popen[bytes],
                                               known: type[Known], monkeypatch: pytest.MonkeyPatch,
                                               thawed: bool, lxc_knows: str) -> None:
    """And who is to end it is told how: by its name only where LXC knows it by that."""
    migration = handed_over(journal, cgroup, init.pid, fence=False)
    migration.move(Event.TAKEN)
    known.pid = {"it": init.pid, "nothing": 0, "another": os.getpid()}[lxc_knows]
    if thawed:
        (cgroup / "cgroup.freeze").write_text("0")
        (cgroup / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    ended: list[str] = []
    monkeypatch.setattr(end_copy, "stop_and_fence", lambda each: ended.append(each.name))
    monkeypatch.setattr(bases, "prune", lambda _: None)
    there = There(State.RESTORED)
    if not thawed:
        end_copy.carry_out(migration, cast("Connection", there))
        assert ended == ["web"]
        return
    with pytest.raises(OutOfOrder, match="someone has thawed it here") as raised:
        end_copy.carry_out(migration, cast("Connection", there))
    assert ended == [] and migration.state is State.DUMPED
    end = f"lxc-stop -P {migration.lxcpath} -n web" if lxc_knows == "it" else f"kill -9 {init.pid}"
    assert raised.value.hint == f"Next: {end} -- and then: migrator finish web"
    assert container_config.fence_of(config(migration).read_text()) == migration.id


def test_what_an_earlier_finish_has_left_ending_is_no_second_one(
        journal: Journal, cgroup: Path, init: subprocess.Popen[bytes], known: type[Known],
        monkeypatch: pytest.MonkeyPatch) -> None:
    """It was killed: the first process is gone, and LXC's monitor not done; or not yet, and it is on its way there."""
    migration = handed_over(journal, cgroup, init.pid)
    for event in (Event.TAKEN, Event.FINISH):
        migration.move(event)
    known.pid = init.pid
    (cgroup / "cgroup.freeze").write_text("0")
    (cgroup / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    standing.refuse_end(migration, "finish")
    (cgroup / "cgroup.procs").write_text("")
    known.pid = 0
    monkeypatch.setattr(known, "state", "STOPPING")
    standing.refuse_end(migration, "finish")
