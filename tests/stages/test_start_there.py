# SPDX-License-Identifier: GPL-2.0-or-later
"""The start of a container that came without its memory: when it counts as one that may have run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from migrator.base import boot_clock, bounded_read
from migrator.config import container_config
from migrator.copies import no_memory
from migrator.criu import criu_dump, ran_mark
from migrator.errors import MigratorError
from migrator.errors.containers import ConfigInvalid, ContainerNotRunning
from migrator.errors.memory import RestoreFailed, StartFailed
from migrator.errors.outcomes import SourceStillFrozen
from migrator.errors.ownership import WordOver
from migrator.errors.this_host import CommandFailed
from migrator.host import lxc
from migrator.record.journal import Journal, Migration
from migrator.record.migration_paths import Layout
from migrator.record.states import Event, Role, State
from stages.steps import restore_here

ID = "0badc0de"


@pytest.fixture
def migration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Migration]:
    with Journal(tmp_path / "journal.db") as journal:
        found = journal.create(id=ID, role=Role.DESTINATION, name="web", lxcpath=tmp_path, peer="hosta",
                               event=Event.RECEIVE, rounds=[], memory=False)
        Layout(tmp_path, "web", ID).spool.mkdir(parents=True)
        (tmp_path / "web").mkdir()
        (tmp_path / "web" / "config").write_text(f"lxc.uts.name = web\nlxc.rootfs.path = btrfs:{tmp_path}/web/rootfs\n")

        class Container:
            config_file = tmp_path / "web" / "config"
            name = "web"
            lxcpath = tmp_path

        monkeypatch.setattr(criu_dump, "LOG_FOLDER", tmp_path / "log")
        monkeypatch.setattr(lxc, "Container", lambda *_: Container())
        monkeypatch.setattr(container_config, "unfenced", str)
        yield found


def started(cause: MigratorError, log: Path) -> Callable[..., int]:
    def start(*_: object, **__: object) -> int:
        raise StartFailed(name="web", reason="it says no", log=log) from cause

    return start


HOOK = "lxc-start web 20261129 ERROR    utils - utils.c:run_buffer:1 - Script exited with status 1\n"
EXECUTED = "lxc-start web 20261129 NOTICE   start - start.c:start:2375 - Exec'ing \"/sbin/init\"\n"
NO_INIT = f"{EXECUTED}lxc-start web 20261129 ERROR    start - start.c:start:2378 - Failed to exec \"/sbin/init\"\n"
LONG = f"{HOOK}{'x' * bounded_read.LOG_LIMIT}\n{HOOK}"
ABORTED = f"{EXECUTED}lxc-start web 20261129 ERROR    lxccontainer - Received container state \"ABORTING\"\n"


@pytest.mark.parametrize(("cause", "said", "may_have_run"), [
    (CommandFailed(command="lxc-start", outcome="exit status 1", output=""), HOOK, False),
    (CommandFailed(command="lxc-start", outcome="exit status 1", output=""), NO_INIT, False),
    (CommandFailed(command="lxc-start", outcome="exit status 1", output=""), ABORTED, True),  # it ran for a moment
    (CommandFailed(command="lxc-start", outcome="exit status 1", output=""), "", True),
    (CommandFailed(command="lxc-start", outcome="exit status 1", output=""), None, True),  # /var/log is full
    (CommandFailed(command="lxc-start", outcome="SIGKILL", output=""), HOOK, True),
    (CommandFailed(command="lxc-start", outcome="exit status 1", output=""), LONG, True),  # its middle is not read
    (ContainerNotRunning(name="web", lxcpath="/pool", state="STOPPED"), HOOK, True),  # it came up, its init has ended
])
def test_what_lxc_did_not_start_has_not_run(migration: Migration, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                            cause: MigratorError, said: str | None, may_have_run: bool) -> None:
    if said is not None:
        (tmp_path / "start.log").write_text(said)
    monkeypatch.setattr(no_memory, "start", started(cause, tmp_path / "start.log"))
    stage = restore_here.Restore(migration, 60.0, leave=lambda: math.inf)
    with pytest.raises(StartFailed):
        stage._start()
    assert ran_mark.was(ran_mark.mark(stage.layout.spool)) is may_have_run


def test_what_comes_too_late_is_not_started(migration: Migration, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(no_memory, "start", lambda *_, **__: pytest.fail("it is started"))
    stage = restore_here.Restore(migration, 60.0, leave=lambda: math.inf)
    stage.end = 0.0
    with pytest.raises(WordOver):
        stage._start()
    assert not ran_mark.was(ran_mark.mark(stage.layout.spool))


def test_what_is_kept_busy_until_the_word_is_over_refuses_itself(migration: Migration,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has started it may have been killed: nobody else would end it."""
    given: list[str] = []

    def start(*_: object, config: Path, **__: object) -> int:
        given.append(config.read_text())
        raise StartFailed(name="web", reason="it says no", log="/log")

    monkeypatch.setattr(no_memory, "start", start)
    stage = restore_here.Restore(migration, 60.0, leave=lambda: math.inf)
    with pytest.raises(StartFailed):
        stage._start()
    assert given[0].partition("lxc.ephemeral")[0] == (migration.lxcpath / "web" / "config").read_text()
    assert [hook.split()[0] for hook in given[0].split("lxc.hook.")[1:]] == ["pre-start", "start-host"]


def test_nothing_is_made_between_the_look_at_the_clock_and_the_start(migration: Migration,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk that has the logs may stand still for a while, and the word be over behind that."""
    now = [1000.0]
    monkeypatch.setattr(boot_clock, "now", lambda: now[0])
    monkeypatch.setattr(time, "clock_gettime", lambda _: now[0])
    honest = no_memory.log_of

    def slow(*args: Any, **how: Any) -> Path:
        now[0] += 100.0
        return honest(*args, **how)

    monkeypatch.setattr(no_memory, "log_of", slow)
    monkeypatch.setattr(no_memory, "run", lambda *_, **__: pytest.fail("it is started"))
    monkeypatch.setattr(no_memory, "end", lambda *_: None)
    stage = restore_here.Restore(migration, 60.0, leave=lambda: math.inf)
    with pytest.raises(WordOver):
        stage._start()
    assert not ran_mark.was(ran_mark.mark(stage.layout.spool))
    assert list(criu_dump.LOG_FOLDER.iterdir()), "it was made before"


def test_nothing_is_started_on_the_hosts_own_root_file_system(migration: Migration,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    """LXC takes that where a configuration names none."""
    monkeypatch.setattr(no_memory, "start", lambda *_, **__: pytest.fail("it is started"))
    (migration.lxcpath / "web" / "config").write_text("lxc.uts.name = web\n")
    stage = restore_here.Restore(migration, 60.0, leave=lambda: math.inf)
    with pytest.raises(ConfigInvalid, match="that of the host"):
        stage._start()
    assert not stage.plain_config.exists()
    assert not ran_mark.was(ran_mark.mark(stage.layout.spool))


def test_what_fails_is_undone_where_no_log_can_be_kept(migration: Migration, monkeypatch: pytest.MonkeyPatch,
                                                       tmp_path: Path) -> None:
    """/var/log is full."""
    for event in (Event.RECEIVED, Event.IMPORT, Event.IMPORTED, Event.RECEIVE_DUMP, Event.DUMP_RECEIVED, Event.OWN,
                  Event.RESTORE):
        migration.move(event)
    cleared: list[str] = []
    monkeypatch.setattr("stages.steps.settling.clear", lambda each: cleared.append(each.id))
    monkeypatch.setattr(criu_dump, "LOG_FOLDER", tmp_path / "no" / "folder")
    stage = restore_here.Restore(migration, 60.0, leave=lambda: math.inf)
    stage.images = tmp_path
    (tmp_path / "restore.log").write_text("Error\n")
    with pytest.raises(SourceStillFrozen, match="it says no"):
        stage._undo(RestoreFailed(name="web", reason="it says no", log="gone", host="hostb"))
    assert cleared == [ID] and migration.state is State.OWNED
