# SPDX-License-Identifier: GPL-2.0-or-later
"""`migrator create-dump` as it is typed: what has come of it is told, whatever comes before its end."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from migrator.base.result import Result
from migrator.copies import standing
from migrator.errors import Interrupted
from migrator.errors.connection import ConnectionLost, HostUnreachable
from migrator.errors.outcomes import SourceStateUnknown
from migrator.host import lxc
from migrator.record import container_lock, next_commands
from migrator.record.journal import Journal, Migration
from migrator.record.migration_paths import locked
from migrator.record.states import Event, Owner, State
from stages import create_dump
from stages.steps import freeze_and_offer, prologue
from stages.steps.options import MoveRequest, NamedContainer
from tests.stages.handovers import Plain, migration  # noqa: F401 -- a fixture
from tests.stages.journals import dumping, journal, offered  # noqa: F401 -- a fixture
from tests.stages.key_presses import handlers, press  # noqa: F401 -- a fixture
from tests.stages.snapshots import There, recorded, refuses
from tunnel.tunnel_errors import PeerAbsent

LOST = ConnectionLost(destination="hostb", reason="cut")


@pytest.fixture
def typed(journal: Journal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], Result]:
    """`migrator create-dump web -d root@hostb` on this host."""
    monkeypatch.setattr(prologue, "DEFAULT_PATH", journal.path)
    monkeypatch.setattr(prologue, "locked",
                        lambda name, **fields: locked(name, tmp_path / "run" / "lock", **fields))
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(lxc.Container, "__init__", lambda *_: None)
    monkeypatch.setattr(lxc.Container, "state", "RUNNING")
    return lambda: create_dump.run(create_dump.CreateDumpOptions(
        MoveRequest(NamedContainer("web", str(tmp_path)), "root@hostb")))


def over(end: Callable[[], None], there: object = None) -> Callable[..., Any]:
    """Connections that end so."""
    @contextlib.contextmanager
    def connected(*_: object) -> Iterator[object]:
        try:
            yield there
        finally:
            end()

    return connected


@pytest.mark.parametrize("when", ["while the images are removed", "while the connection is ended"])
def test_what_was_handed_over_is_said_in_spite_of_ctrl_c(migration: Migration, typed: Callable[[], Result],
                                                         monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """There is nothing left to be undone: it stands frozen here, and that is what counts."""
    def result(*_: object) -> Result:
        if "images" in when:
            press()
        return Result({}, "frozen; hostb owns it now")

    def carry_out(_: object, __: object, migration: Migration, *___: object, **____: object) -> Result:
        made = Plain(migration)
        monkeypatch.setattr(made, "result", result)
        return made.run()

    monkeypatch.setattr(standing, "require", lambda *_: None)
    monkeypatch.setattr(freeze_and_offer, "carry_out", carry_out)
    monkeypatch.setattr(create_dump, "connected", over(press if "connection" in when else lambda: None))
    assert typed().text == "frozen; hostb owns it now"
    assert recorded(migration).state is State.DUMPED and recorded(migration).owner is Owner.DESTINATION
    with pytest.raises(Interrupted):
        container_lock.check_interrupted()


def test_nor_does_ctrl_c_take_the_place_of_an_outcome(journal: Journal, typed: Callable[[], Result],
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    migration = offered(journal)
    monkeypatch.setattr(create_dump, "connected", over(press, There({"state": "dump-received", "ticket": ""})))
    monkeypatch.setattr(standing, "require", refuses(LOST))
    with pytest.raises(SourceStateUnknown, match="kept frozen here"):
        typed()
    assert recorded(migration).state is State.OFFERED


@pytest.mark.parametrize("error", [HostUnreachable(destination="root@hostb", reason="no answer"),
                                   PeerAbsent(name="hostb"), Interrupted(signal="SIGINT", number=2)])
def test_offered_and_nobody_to_be_asked_it_says_that_it_is_frozen(
        journal: Journal, typed: Callable[[], Result], monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """As `status` names it; 42 would say that the container is where it was."""
    migration = offered(journal)
    assert next_commands.next_command(migration) == "migrator create-dump web -d root@hostb"
    monkeypatch.setattr(create_dump, "connected", refuses(error))
    with pytest.raises(SourceStateUnknown, match="hostb may run the container web is unknown; it is kept frozen"):
        typed()
    assert recorded(migration).state is State.OFFERED


def test_offered_and_lost_as_it_is_asked(journal: Journal, typed: Callable[[], Result],
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    offered(journal)
    there = There({})
    monkeypatch.setattr(there, "call_within", lambda *_, **__: refuses(LOST)())
    monkeypatch.setattr(create_dump, "connected", over(lambda: None, there))
    with pytest.raises(SourceStateUnknown) as unknown:
        typed()
    assert unknown.value.cause is LOST


def test_what_runs_is_no_outcome(journal: Journal, typed: Callable[[], Result],
                                 monkeypatch: pytest.MonkeyPatch) -> None:
    dumping(journal).move(Event.THAW)
    monkeypatch.setattr(create_dump, "connected", refuses(LOST))
    with pytest.raises(ConnectionLost):
        typed()
