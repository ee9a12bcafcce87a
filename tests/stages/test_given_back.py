# SPDX-License-Identifier: GPL-2.0-or-later
"""A signal by hand while a container is given back: the first waits until it runs, whatever has begun that."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import os
import signal
import time

import pytest

from migrator.config import container_config
from migrator.copies import origins
from migrator.errors import Interrupted, MigratorError
from migrator.errors.connection import ConnectionLost
from migrator.errors.outcomes import SourceRunsAgain
from migrator.record import container_lock
from migrator.record.journal import Journal, Migration
from migrator.record.states import Event, Role, State
from stages import resume
from stages.steps import freeze_and_offer, give_back, thaw_again
from tests.stages.journals import dumping, journal, offered  # noqa: F401 -- a fixture
from tests.stages.key_presses import acts, driven, handlers, press  # noqa: F401 -- fixtures


def test_it_is_raised_at_once_where_nothing_is_given_back() -> None:
    with pytest.raises(Interrupted):
        press()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL, "a second one ends it"


def ended_by(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The signals that would have ended this process, by that clock, whose last moment stays."""
    fatal: list[int] = []
    monkeypatch.setattr(time, "monotonic", lambda: clock.pop(0) if clock[1:] else clock[0])
    monkeypatch.setattr(signal, "raise_signal", fatal.append)
    return fatal


@pytest.mark.parametrize("first", [signal.SIGHUP, signal.SIGTERM, container_lock.ABORT])
@pytest.mark.parametrize("then", [signal.SIGHUP, signal.SIGTERM])
def test_what_comes_along_with_the_first_ends_nothing(first: signal.Signals, then: signal.Signals,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal that closes hangs up twice; the end of a session, and timeout(1), send as much."""
    fatal = ended_by([1000.0, 1000.4], monkeypatch)
    with pytest.raises(Interrupted), container_lock.held_back():
        os.kill(os.getpid(), first)
        for _ in range(2):
            os.kill(os.getpid(), then)
    assert not fatal and len(container_lock._interrupted) == 1


def test_later_it_is_a_second_sigterm_that_ends_it_and_never_a_hang_up(monkeypatch: pytest.MonkeyPatch) -> None:
    fatal = ended_by([1000.0, 1000.6], monkeypatch)
    with pytest.raises(Interrupted), container_lock.held_back():
        for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM):
            os.kill(os.getpid(), number)
    assert fatal == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_it_waits_until_the_outermost_block_has_ended() -> None:
    done = []
    with pytest.raises(Interrupted), container_lock.held_back():
        with container_lock.held_back():
            press()
            done.append("inner")
        done.append("outer")
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL, "a second one ends it, here too"
    assert done == ["inner", "outer"] and not container_lock.is_held_back()


def test_what_comes_out_of_the_block_counts_more() -> None:
    with pytest.raises(ZeroDivisionError), container_lock.held_back():
        press()
        raise ZeroDivisionError
    with pytest.raises(Interrupted):
        container_lock.check_interrupted()


def test_a_signal_of_before_is_not_raised_once_more() -> None:
    with pytest.raises(Interrupted):
        press()
    with container_lock.held_back():
        pass


def test_a_rollback_thaws_first(journal: Journal, acts: list[str]) -> None:
    """Typed by hand: it ends with the container running; the next one does the rest."""
    migration = offered(journal)
    with pytest.raises(Interrupted):
        give_back.roll_back(migration, lambda: "")
    assert acts == ["begins to thaw, rolling-back", "thawed"] and migration.state is State.ROLLING_BACK


def test_so_does_one_before_the_offer_and_asks_nobody(journal: Journal, acts: list[str],
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container_config, "unfence", lambda *_: acts.append("unfenced"))
    monkeypatch.setattr(origins, "is_there", lambda _: True)
    with pytest.raises(Interrupted):
        give_back.roll_back(dumping(journal), lambda: pytest.fail("it is asked"))
    assert acts == ["begins to thaw, dumping", "thawed", "unfenced"]


@pytest.mark.parametrize("broken", [False, True])
def test_what_a_killed_dump_has_left_runs_first(journal: Journal, acts: list[str], monkeypatch: pytest.MonkeyPatch,
                                                broken: bool) -> None:
    """Without its memory it was told to end, and would be left so."""
    migration = dumping(journal)
    monkeypatch.setattr(thaw_again, "thaw_source", thaw_again.thaw_source)
    if broken:
        monkeypatch.setattr("migrator.config.container_config.unfence", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError if broken else Interrupted):
        freeze_and_offer.heal(migration)
    assert acts[:2] == ["begins to thaw, dumping", "thawed"]
    assert migration.state is (State.DUMPING if broken else State.PREPARED)


def test_the_way_back_goes_to_its_end(journal: Journal, acts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The restore has failed; the first Ctrl-C comes while the destination is asked for the token."""
    migration = offered(journal)

    def thaw(_: Migration) -> bool:
        acts.append("thawed")
        return True

    monkeypatch.setattr(thaw_again, "thaw_source", thaw)

    def fails() -> None:
        raise MigratorError(reason="the restore has failed")

    with pytest.raises(SourceRunsAgain):
        driven(journal, migration, monkeypatch, fails).run()
    assert acts == ["thawed", "dropped"]
    assert (found := journal.by_id(migration.id, migration.role)) and found.state is State.ROLLED_BACK


def test_nothing_is_tried_again_after_it(journal: Journal, acts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection was lost while it was dumped, and Ctrl-C came while it was thawed for that."""
    migration = dumping(journal)
    monkeypatch.setattr(thaw_again, "thaw_source", lambda _: False)
    tries = []

    def fails() -> None:
        tries.append("tried")
        with container_lock.held_back():
            press()
            migration.move(Event.THAW)
            raise ConnectionLost(reason="gone")

    drive = driven(journal, migration, monkeypatch, fails)
    monkeypatch.setattr(drive._back, "_tell", lambda: "")
    with pytest.raises(Interrupted):
        drive.run()
    assert tries == ["tried"]
    assert (found := journal.by_id(migration.id, migration.role)) and found.state is State.ROLLED_BACK


def test_no_other_migration_is_begun_after_it(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """`resume --all`, whose first one was given back meanwhile."""
    offered(journal)
    journal.create(id="00000002", role=Role.SOURCE, name="db", lxcpath=journal.path.parent,
                   peer="root@hostb", event=Event.SEND)
    begun = []

    def one(_options: object, name: str, *_: object, **__: object) -> None:
        begun.append(name)
        with container_lock.held_back():
            if name == "web":
                press()
            raise ConnectionLost(reason="gone")

    monkeypatch.setattr(resume, "DEFAULT_PATH", journal.path)
    monkeypatch.setattr(resume, "one", one)
    with pytest.raises(Interrupted):
        resume.every(resume.ResumeOptions())
    assert begun == ["web"]
