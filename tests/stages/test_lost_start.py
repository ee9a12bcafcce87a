# SPDX-License-Identifier: GPL-2.0-or-later
"""A start that LXC has lost, its monitor killed, runs all the same: none comes beside it, and no word is given."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrator.config import container_config
from migrator.copies import after_crash, ending, leave, no_memory, origins, remains, second_start, standing
from migrator.errors import MigratorError
from migrator.errors.containers import ContainerNotFound, OutOfOrder
from migrator.errors.outcomes import SourceStillStopped
from migrator.host import lxc
from migrator.record.journal import Journal, Migration
from migrator.record.migration_paths import Layout
from migrator.record.states import Event
from stages.steps import offer, thaw_again
from tests.stages.journals import journal  # noqa: F401 -- a fixture
from tests.stages.monitorless import Monitorless, cgroup, configured, frozen, init, started  # noqa: F401 -- fixtures
from tests.stages.other_starts import BESIDE, NESTED, SLEEP, START, lives
from tests.stages.standing import OTHER_BOOT


@pytest.fixture(autouse=True)
def lost(monkeypatch: pytest.MonkeyPatch, started: list[str]) -> None:
    """Its root file system is where these processes live; LXC knows nothing of it."""
    monkeypatch.setattr(Monitorless, "rootfs", Path("/"))
    monkeypatch.setattr(origins, "is_source", lambda _: True)
    monkeypatch.setattr(no_memory, "stay", lambda *_: None)
    monkeypatch.setattr(no_memory, "end", lambda *_: None)


@contextlib.contextmanager
def another(monkeypatch: pytest.MonkeyPatch, *first: int) -> Iterator[int]:
    """Another start of it, beside what is given."""
    with lives(*START, *SLEEP) as beside:
        monkeypatch.setattr(lxc, "container_processes", lambda _: [*first, beside[1]])
        yield beside[1]


def rebooted(journal: Journal, cgroup: Path, *, memory: bool) -> Migration:
    """Since it was brought to a stand; nobody was offered it."""
    configured(journal)
    return frozen(journal, cgroup, os.getpid(), boot=OTHER_BOOT, memory=memory, stopping=not memory,
                  stop_timeout=1)


@pytest.mark.parametrize("memory", [True, False])
def test_none_is_started_beside_it(journal: Journal, cgroup: Path, started: list[str], monkeypatch: pytest.MonkeyPatch,
                                   capsys: pytest.CaptureFixture[str], memory: bool) -> None:
    migration = rebooted(journal, cgroup, memory=memory)
    with another(monkeypatch) as pid:
        assert not thaw_again.thaw_source(migration)
        assert started == [] and f"is alive (process {pid})" in capsys.readouterr().err
        told = after_crash.where(migration)
        assert "web keeps running here, but LXC no longer knows of it" in told and f"to end it: kill -9 {pid}" in told
    monkeypatch.setattr(lxc, "container_processes", lambda _: [])
    assert "Start it with: lxc-start" in after_crash.where(migration)


def test_it_is_told_of_where_lxc_has_lost_its_configuration_too(
        journal: Journal, cgroup: Path, started: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    migration = rebooted(journal, cgroup, memory=True)
    with another(monkeypatch) as pid:
        monkeypatch.setattr(lxc, "Container", known_to_nobody)
        monkeypatch.setattr(Layout, "rootfs", Path("/"))  # where that lives
        assert f"kill -9 {pid}" in after_crash.where(migration)


def known_to_nobody(name: str, lxcpath: Path) -> lxc.Container:
    raise ContainerNotFound(name=name, lxcpath=lxcpath)


@pytest.mark.parametrize("memory", [True, False])
def test_nor_is_it_ended_in_the_cgroup_that_is_on_record(
        journal: Journal, cgroup: Path, started: list[str], monkeypatch: pytest.MonkeyPatch, memory: bool) -> None:
    """That was free again, in this very boot: what was brought to a stand, and was to be stopped, has ended."""
    configured(journal)
    with another(monkeypatch) as pid:
        (cgroup / "cgroup.procs").write_text(f"{pid}\n")
        migration = frozen(journal, cgroup, os.getpid(), init=[1, 1], memory=memory, stopping=not memory,
                           stop_timeout=0.05)
        assert remains.are_here(migration)
        assert not thaw_again.thaw_source(migration)
        ending.kill(migration)
        assert not (cgroup / "cgroup.kill").exists() and started == []
        assert f"to end it: echo 1 >{cgroup}/cgroup.kill" in after_crash.where(migration)


def test_what_was_told_to_end_itself_is_no_lost_start(journal: Journal, cgroup: Path, started: list[str],
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it takes: nothing is recorded of a start, and its fence stands."""
    configured(journal)
    container_config.fence(journal.path.parent / "web", "lxc.uts.name = web\n", "0badc0de", "no")
    with another(monkeypatch) as pid:
        (cgroup / "cgroup.procs").write_text(f"{pid}\n")
        migration = frozen(journal, cgroup, pid, memory=False, stopping=True, stop_timeout=0.05)
        with pytest.raises(SourceStillStopped, match=str(pid)):
            thaw_again.thaw_source(migration)
    assert (cgroup / "cgroup.kill").exists() and started == [] and migration.still.stopping
    assert container_config.fence_of((journal.path.parent / "web" / "config").read_text()) == "0badc0de"


@pytest.mark.parametrize("memory", [True, False])
def test_what_it_leaves_behind_is_waited_for(journal: Journal, cgroup: Path, started: list[str],
                                             monkeypatch: pytest.MonkeyPatch, memory: bool) -> None:
    """Its first process ends while it is looked at, and others of it take longer."""
    configured(journal)
    monkeypatch.setattr(ending, "kill", lambda _: None)
    with another(monkeypatch) as pid:
        (cgroup / "cgroup.procs").write_text(f"{pid}\n")
        migration = frozen(journal, cgroup, os.getpid(), init=[1, 1], memory=memory, stopping=not memory,
                           stop_timeout=0.05)

        def ends(*_: object) -> None:
            (cgroup / "cgroup.procs").write_text("4242\n")

        monkeypatch.setattr(second_start, "on_disk", ends)
        with pytest.raises(MigratorError, match="4242"):
            thaw_again.thaw_source(migration)
    assert started == []


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("second", [*sorted(set(BESIDE) - {"another start"}), "a user's"])
def test_a_visitor_keeps_nothing_from_its_start(journal: Journal, cgroup: Path, started: list[str], second: str,
                                                monkeypatch: pytest.MonkeyPatch, memory: bool) -> None:
    migration = rebooted(journal, cgroup, memory=memory)
    command, which = BESIDE.get(second, BESIDE["another start"])
    with lives(*command) as beside:
        monkeypatch.setattr(lxc, "container_processes", lambda _: [beside[which]])
        if second == "a user's":
            monkeypatch.setattr(os, "geteuid", lambda: 2**31)
        thaw_again.thaw_source(migration)
    assert started == ["web"]


def test_what_is_just_ending_is_waited_for(journal: Journal, cgroup: Path, started: list[str],
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    """As what an lxc-start that was killed had begun."""
    monkeypatch.setattr(lxc, "END_LIMIT", 600.0)
    with another(monkeypatch) as pid:
        looks = [[], [], [pid], [pid]]
        monkeypatch.setattr(lxc, "container_processes", lambda _: looks.pop())
        thaw_again.thaw_source(rebooted(journal, cgroup, memory=True))
    assert started == ["web"] and looks == [[]]


def test_of_all_that_lives_in_it_its_first_process_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """And none that has had such namespaces made inside: with the first all others end."""
    with lives(*START, *NESTED) as found:
        monkeypatch.setattr(lxc, "container_processes", lambda _: [found[2], found[1]])
        assert second_start.on_disk("web", Path("/pool"), Path("/")) == found[1]
        assert second_start.on_disk("web", Path("/pool"), Path("/nowhere")) is None


def test_beside_the_frozen_one_it_is_seen_by_whoever_gives_a_word(
        journal: Journal, cgroup: Path, started: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """LXC may even know the frozen one: the other one was started by another path."""
    with lives(*START, *SLEEP) as ours, another(monkeypatch, ours[1]) as pid:
        (cgroup / "cgroup.procs").write_text(f"{ours[1]}\n")
        migration = frozen(journal, cgroup, ours[1], Event.OFFER, Event.TAKEN)
        migration.note("leave", leave=leave.given(None, 60.0))
        for knows in (False, True):
            if knows:
                monkeypatch.setattr(Monitorless, "init_pid", ours[1])
                configured(journal)
            with pytest.raises(OutOfOrder, match="runs on") as raised:
                offer.word(migration)
            assert raised.value.hint == "Next: migrator rollback web"
            told = after_crash.note(migration)
            assert "It is frozen here" in told and f"End that one with kill -9 {pid}:" in told
        for event in (None, Event.FINISH):
            if event:
                migration.move(event)
            with pytest.raises(OutOfOrder, match="someone has started it here too") as raised:
                standing.refuse_end(migration, "finish")
            assert raised.value.hint == f"Next: kill -9 {pid} -- and then: migrator finish web"
        monkeypatch.setattr(lxc, "container_processes", lambda _: ours[1:])
        standing.refuse_end(migration, "finish")
        assert not standing.runs(migration)
    assert (cgroup / "cgroup.freeze").read_text() == "1"


@pytest.mark.parametrize("finishing", [False, True])
def test_what_has_gone_on_the_disk_since_is_ended_by_its_process(
        journal: Journal, cgroup: Path, started: list[str], monkeypatch: pytest.MonkeyPatch, finishing: bool) -> None:
    configured(journal)
    migration = frozen(journal, cgroup, os.getpid(), Event.OFFER, Event.TAKEN, boot=OTHER_BOOT)
    if finishing:
        migration.move(Event.FINISH)
    with another(monkeypatch) as pid:
        with pytest.raises(OutOfOrder, match="started it here too") as raised:
            standing.refuse_end(migration, "finish")
        assert raised.value.hint == f"Next: kill -9 {pid} -- and then: migrator finish web"
        monkeypatch.setattr(origins, "is_source", lambda _: False)
        standing.refuse_end(migration, "finish")  # what runs is another one that has its name


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("second", sorted(set(BESIDE) - {"another start"}))
def test_a_visitor_keeps_no_finish_from_its_end(journal: Journal, cgroup: Path, started: list[str], second: str,
                                                monkeypatch: pytest.MonkeyPatch, memory: bool) -> None:
    """Nor is it offered any less for him: he has not started it."""
    configured(journal)
    migration = frozen(journal, cgroup, os.getpid(), Event.OFFER, Event.TAKEN, boot=OTHER_BOOT, memory=memory)
    command, which = BESIDE[second]
    with lives(*command) as beside:
        monkeypatch.setattr(lxc, "container_processes", lambda _: [beside[which]])
        assert not standing.runs(migration)
        standing.refuse_end(migration, "finish")
