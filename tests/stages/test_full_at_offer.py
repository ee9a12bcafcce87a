# SPDX-License-Identifier: GPL-2.0-or-later
"""The disk is full when the token is, or may be, with the destination: the outcome says where the container is."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import errno
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from migrator.config import container_config
from migrator.errors import Interrupted
from migrator.errors.data import DiskFull
from migrator.errors.documented import DocumentedError
from migrator.errors.outcomes import SourceStateUnknown, SourceStoppedUnknown
from migrator.errors.this_host import JournalBroken
from migrator.record.journal import Journal, Migration
from migrator.record.states import Event, State
from migrator.transfer.rpc import Connection
from stages.steps import offer
from tests.stages.handovers import Plain, migration, thawed  # noqa: F401 -- fixtures
from tests.stages.journals import journal  # noqa: F401 -- a fixture
from tests.stages.monitorless import cgroup, init  # noqa: F401 -- fixtures
from tests.stages.standing import Known, There, handed_over, known, offers_again  # noqa: F401 -- a fixture

UNKNOWN = {True: SourceStateUnknown, False: SourceStoppedUnknown}


def full(path: Path, *_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", str(path))


def no_record(*events: Event) -> Callable[..., None]:
    """As `Migration.move`, where no record has room that is of one of these."""
    honest = Migration.move

    def move(self: Migration, event: Event, **detail: Any) -> None:
        if event in events:
            raise JournalBroken(path=self.journal_path, reason="database or disk is full")
        honest(self, event, **detail)

    return move


def is_kept(error: DocumentedError, migration: Migration, cause: type[DocumentedError]) -> None:
    """It says so, what it hangs on, and what comes then."""
    assert isinstance(error, SourceStateUnknown) and error.exit_status == 5 and type(error.cause) is cause
    assert f"migrator rollback {migration.name}" in error.hint
    assert migration.state is State.OFFERED


def without_room_for_the_fence(journal: Journal, cgroup: Path, init: subprocess.Popen[bytes], known: type[Known],
                               monkeypatch: pytest.MonkeyPatch, *, memory: bool) -> Migration:
    """It stands still, somebody has taken its fence away, and its disk is full."""
    migration = handed_over(journal, cgroup, init.pid, fence=False, memory=memory)
    known.pid = init.pid if memory else 0
    monkeypatch.setattr(container_config, "write_file", full)
    return migration


@pytest.mark.parametrize("memory", [True, False])
def test_a_fence_that_cannot_be_put_back_before_it_is_offered_again(
        journal: Journal, cgroup: Path, init: subprocess.Popen[bytes], known: type[Known],
        monkeypatch: pytest.MonkeyPatch, memory: bool) -> None:
    migration = without_room_for_the_fence(journal, cgroup, init, known, monkeypatch, memory=memory)
    there = There()
    with pytest.raises(UNKNOWN[memory]) as raised:
        offers_again(migration, there)
    assert there.asked == ["state"]
    is_kept(raised.value, migration, DiskFull)


def test_a_word_that_cannot_be_recorded_before_it_is_offered_again(
        journal: Journal, cgroup: Path, init: subprocess.Popen[bytes], known: type[Known],
        monkeypatch: pytest.MonkeyPatch) -> None:
    migration = handed_over(journal, cgroup, init.pid)
    known.pid = init.pid

    def broken(*_: object, **__: object) -> None:
        raise JournalBroken(path=journal.path, reason="database or disk is full")

    monkeypatch.setattr(Migration, "note", broken)
    there = There()
    with pytest.raises(SourceStateUnknown) as raised:
        offers_again(migration, there)
    assert there.asked == ["state"]
    is_kept(raised.value, migration, JournalBroken)


@pytest.mark.parametrize("memory", [True, False])
def test_a_fence_that_cannot_be_put_back_before_the_word(
        journal: Journal, cgroup: Path, init: subprocess.Popen[bytes], known: type[Known],
        monkeypatch: pytest.MonkeyPatch, memory: bool) -> None:
    """The destination has taken the token by then, and hears no word."""
    migration = without_room_for_the_fence(journal, cgroup, init, known, monkeypatch, memory=memory)
    there = There()
    with pytest.raises(UNKNOWN[memory]) as raised:
        offer.make(migration, cast("Connection", there))
    assert there.asked == ["own"] and there.told == -1.0
    is_kept(raised.value, migration, DiskFull)


@pytest.mark.parametrize("memory", [True, False])
def test_that_it_was_taken_cannot_be_recorded(
        journal: Journal, cgroup: Path, init: subprocess.Popen[bytes], known: type[Known],
        monkeypatch: pytest.MonkeyPatch, memory: bool) -> None:
    """The next create-dump learns it from the destination, and records it then."""
    migration = handed_over(journal, cgroup, init.pid, memory=memory)
    known.pid = init.pid if memory else 0
    if not memory:
        (cgroup / "cgroup.procs").write_text("")
    with monkeypatch.context() as first:
        first.setattr(Migration, "move", no_record(Event.TAKEN))
        for there in (There(), There(State.OWNED)):
            with pytest.raises(UNKNOWN[memory]) as raised:
                offers_again(migration, there)
            is_kept(raised.value, migration, JournalBroken)
    offers_again(migration, There(State.OWNED))
    assert migration.state is State.DUMPED


def test_an_offer_that_was_not_made_cannot_be_withdrawn(migration: Migration, thawed: list[State],
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C has come between its record and the offer."""
    made = Plain(migration)

    def interrupted() -> None:
        monkeypatch.setattr(Migration, "move", no_record(Event.REFUSED))
        raise Interrupted(signal="SIGINT", number=2)

    monkeypatch.setattr(made, "unwatched", interrupted)
    with pytest.raises(SourceStateUnknown) as raised:
        made.run()
    assert thawed == [] and made.done[-1] == "left alone, offered"
    is_kept(raised.value, migration, JournalBroken)
