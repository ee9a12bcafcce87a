# SPDX-License-Identifier: GPL-2.0-or-later
"""Who listens in the place of LXC's monitor and takes no connection keeps nothing from being ended or given back."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from migrator.copies import after_crash, ending, no_memory, second_start
from migrator.copies.origins import Whose
from migrator.errors.containers import AlreadyRuns
from migrator.errors.this_host import CommandTimeout
from migrator.host import lxc, monitor_socket
from migrator.record.journal import Journal, Migration
from migrator.record.migration_paths import Layout
from migrator.record.states import Event, State
from stages.steps import give_back, left_running, renamed, restore_here, settling, thaw_again
from tests.stages.journals import dumping, journal  # noqa: F401 -- a fixture
from tests.stages.journals import owned as owned_by


@pytest.fixture
def owned(journal: Journal) -> Migration:
    return owned_by(journal)


@pytest.fixture(autouse=True)
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How often a connection is tried; it never comes about."""
    tried: list[str] = []

    def full(name: str, _lxcpath: Path) -> None:
        tried.append(name)
        raise CommandTimeout(command=f"A connection to LXC's monitor of {name}", limit="10")

    monkeypatch.setattr(monitor_socket, "holder", full)
    said = SimpleNamespace(state="RUNNING", init_pid=1, get_config_item=lambda _: "/")
    monkeypatch.setattr(lxc, "_lxc", lambda: SimpleNamespace(Container=lambda *_: said))
    for module in (lxc, no_memory, ending):
        monkeypatch.setattr(module, "run", lambda *_, **__: pytest.fail("it would speak to whoever listens"))
    return tried


def container(migration: Migration) -> lxc.Container:
    return lxc.Container(migration.name, migration.lxcpath)


def test_of_whom_nothing_is_known(owned: Migration, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CommandTimeout):
        _ = container(owned).state
    assert lxc.told_state(container(owned)) == "STOPPED"
    assert "LXC's monitor of web, or someone in its place, accepts no connection" in capsys.readouterr().err


def test_what_was_killed_is_not_waited_for(owned: Migration, looks: list[str]) -> None:
    ending.kill(owned)
    assert looks == ["web"]


def test_nor_what_a_restore_has_left(owned: Migration, looks: list[str]) -> None:
    left_running.wait_stopped(container(owned))
    assert looks == ["web"]


def test_a_start_that_was_killed_has_not_come_up(owned: Migration) -> None:
    assert not no_memory.runs(container(owned), owned.id)


@pytest.mark.parametrize("lives", [True, False])
def test_the_processes_tell_what_stands_fenced(owned: Migration, monkeypatch: pytest.MonkeyPatch, lives: bool) -> None:
    owned.move(Event.RESTORE)
    owned.move(Event.RESTORED)
    monkeypatch.setattr("migrator.copies.origins.whose", lambda _: Whose.OURS)
    monkeypatch.setattr(second_start, "on_disk", lambda *_: 4711 if lives else None)
    assert settling.stands_fenced(owned) is not lives


@pytest.mark.parametrize("lives", [True, False])
def test_and_whether_what_has_run_still_does(owned: Migration, monkeypatch: pytest.MonkeyPatch, lives: bool) -> None:
    done: list[str] = []
    monkeypatch.setattr(lxc, "runs_in", lambda *_: lives)
    monkeypatch.setattr("migrator.criu.ran_mark.was", lambda _: True)
    monkeypatch.setattr("migrator.criu.ran_mark.drop", lambda _: done.append("mark dropped"))
    monkeypatch.setattr(restore_here, "put_aside", lambda *_: done.append("put aside"))

    def settle(migration: Migration) -> None:
        done.append("settled")
        migration.state = State.RESTORED

    monkeypatch.setattr(settling, "settle", settle)
    stage = restore_here.Restore.__new__(restore_here.Restore)
    stage.migration, stage.container = owned, container(owned)
    stage.layout = Layout.of(owned)
    if lives:
        with pytest.raises(AlreadyRuns):
            stage._keep_what_ran()
    else:
        stage._keep_what_ran()
    assert done == (["settled"] if lives else ["put aside", "mark dropped"])


@pytest.mark.parametrize("lives", [True, False])
def test_and_whether_what_has_its_addresses_runs(owned: Migration, monkeypatch: pytest.MonkeyPatch,
                                                 lives: bool) -> None:
    """By another name: a source stands frozen until that is told."""
    folder = owned.lxcpath / "shop"
    folder.mkdir()
    (folder / "config").touch()
    monkeypatch.setattr(second_start, "on_disk", lambda *_: 4711 if lives else None)
    monkeypatch.setattr(lxc, "container_processes", lambda _: [])
    assert renamed._first(folder) == ([4711] if lives else [])


@pytest.mark.parametrize("lives", [True, False])
def test_a_rollback_says_where_it_is(journal: Journal, monkeypatch: pytest.MonkeyPatch, lives: bool) -> None:
    migration = dumping(journal)
    (migration.lxcpath / "web").mkdir()
    (migration.lxcpath / "web" / "config").touch()
    migration.note("record", cgroup="/sys/fs/cgroup/lxc.payload.web")
    monkeypatch.setattr("migrator.copies.remains.are_here", lambda _: lives)
    assert ("keeps running here" if lives else "is STOPPED here") in after_crash.where(migration)


def test_the_whole_rollback(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    migration = dumping(journal)
    folder = migration.lxcpath / "web"
    folder.mkdir()
    (folder / "config").touch()
    monkeypatch.setattr(thaw_again, "thaw_source", lambda _: True)
    monkeypatch.setattr("migrator.copies.origins.is_there", lambda _: True)
    monkeypatch.setattr(give_back, "drop_attempt", lambda *_: None)
    give_back.roll_back(migration, lambda: "")
    assert migration.state is State.ROLLED_BACK
