# SPDX-License-Identifier: GPL-2.0-or-later
"""Somebody loads the host's nftables anew, which begins with `flush ruleset`: what stands still is silenced again."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from migrator.copies import after_crash, standing
from migrator.errors import MigratorError
from migrator.errors.connection import HostUnreachable
from migrator.errors.this_host import CommandTimeout
from migrator.host import network
from migrator.host.network import Port
from migrator.record import container_lock
from migrator.record.journal import Journal, Migration
from migrator.record.states import Event, State
from migrator.remote.answering import Service
from migrator.transfer.messages import AskSourceState
from stages import create_dump, finish, migrate, resume
from stages.steps import ask_source, prologue, resume_source
from stages.steps.options import EndOptions, MoveRequest, NamedContainer
from tests.stages.journals import journal  # noqa: F401 -- a fixture
from tests.stages.monitorless import cgroup, init  # noqa: F401 -- fixtures
from tests.stages.standing import Known, handed_over, known  # noqa: F401 -- a fixture

VETH = {"inside": "eth0", "outside": "veth7", "bridge": "br0"}
AWAY = HostUnreachable(destination="root@hostb", reason="no answer")


@pytest.fixture
def silenced(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """For which ports it is put back; gone at first."""
    done: list[Any] = []
    monkeypatch.setattr(network, "is_silent", lambda id_: id_ != "0badc0de" or bool(done))
    monkeypatch.setattr(network, "silence", lambda _, ports: done.append(tuple(ports)))
    return done


@pytest.fixture
def migration(journal: Journal, cgroup: Path, init: subprocess.Popen[bytes], known: type[Known]) -> Migration:
    known.pid = init.pid
    return handed_over(journal, cgroup, init.pid, ports=[VETH])


@pytest.mark.parametrize("taken", [False, True])
def test_it_is_told_and_put_back(migration: Migration, silenced: list[Any], capfd: pytest.CaptureFixture[str],
                                 taken: bool) -> None:
    if taken:
        migration.move(Event.TAKEN)
    told = after_crash.note(migration)
    assert "Silence it again with: migrator create-dump web -d root@hostb. " in told
    standing.restore_silence(migration)
    assert silenced == [(Port(**VETH),)]
    assert "The network of web was no longer silenced" in capfd.readouterr().err
    standing.restore_silence(migration)
    assert len(silenced) == 1 and "silent" not in after_crash.note(migration)
    assert capfd.readouterr().err == ""


def thawed(_: Migration, cgroup: Path) -> None:
    (cgroup / "cgroup.freeze").write_text("0\n")
    (cgroup / "cgroup.events").write_text("populated 1\nfrozen 0\n")


def ended(_: Migration, cgroup: Path) -> None:
    (cgroup / "cgroup.procs").write_text("")
    (cgroup / "cgroup.events").write_text("populated 0\nfrozen 0\n")


@pytest.mark.parametrize("change", [
    thawed, ended,
    lambda migration, _: migration.move(Event.REFUSED),
    lambda migration, _: migration.move(Event.FINISH),
    lambda migration, _: migration.note("ports", ports=[]),
], ids=["thawed", "ended", "refused", "finish", "no veth"])
def test_what_runs_is_not_cut_off(migration: Migration, cgroup: Path, silenced: list[Any],
                                  change: Callable[[Migration, Path], None], request: pytest.FixtureRequest) -> None:
    """Nor is another table made for what has ended, or was never silent."""
    if "finish" in request.node.name:
        migration.move(Event.TAKEN)
    change(migration, cgroup)
    standing.restore_silence(migration)
    assert silenced == []


def test_where_nft_does_not_answer(migration: Migration, monkeypatch: pytest.MonkeyPatch,
                                   capfd: pytest.CaptureFixture[str]) -> None:
    """It is no copy that runs: what goes on, goes on."""
    def hangs(*_: object) -> bool:
        raise CommandTimeout(command="nft", seconds="60")

    monkeypatch.setattr(network, "is_silent", hangs)
    standing.restore_silence(migration)
    assert "could not be checked or silenced again" in capfd.readouterr().err
    assert after_crash.note(migration).startswith("It is frozen here, with all its memory. The token was offered")


def test_the_destination_that_asks_has_it_put_back(migration: Migration, silenced: list[Any], tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container_lock, "LOCKS", tmp_path / "lock")
    with contextlib.ExitStack() as stack:
        service = Service(migration.journal, stack)
        ask_source.source_state(service, AskSourceState(id=migration.id))
        assert not silenced, "no word is asked for, and the container is not locked"
        assert ask_source.source_state(service, AskSourceState(id=migration.id, within=90.0)).leave == 90.0
    assert len(silenced) == 1


@pytest.mark.parametrize("stage", [create_dump, finish, resume, migrate])
def test_whatever_takes_it_up_here_puts_it_back_first(migration: Migration, silenced: list[Any],
                                                      monkeypatch: pytest.MonkeyPatch, stage: Any) -> None:
    """Whether or not the destination can be reached."""
    def away(*_: object) -> object:
        assert len(silenced) == 1
        raise AWAY

    for module in (prologue, resume, migrate):
        monkeypatch.setattr(module, "DEFAULT_PATH", migration.journal.path)
    for name in ("locked", "locked_for"):
        monkeypatch.setattr(prologue, name, lambda *_, **__: contextlib.nullcontext())
    for module in (create_dump, finish, resume_source):
        monkeypatch.setattr(module, "connected", away)
    monkeypatch.setattr(migrate, "Drive", lambda *_: SimpleNamespace(run=away))
    monkeypatch.setattr("os.geteuid", lambda: 0)
    container = NamedContainer("web", str(migration.lxcpath))
    request = MoveRequest(container, "root@hostb")
    options: Any = {create_dump: create_dump.CreateDumpOptions(request), finish: EndOptions(container),
                    migrate: migrate.MigrateOptions(request)}.get(stage)
    with pytest.raises(MigratorError, match="cannot be reached"):
        if stage is resume:
            resume.one(resume.ResumeOptions(container), "web", migration.lxcpath)
        else:
            stage.run(options)
    assert migration.state is State.OFFERED
