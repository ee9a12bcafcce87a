# SPDX-License-Identifier: GPL-2.0-or-later
"""A second Ctrl-C behind the thaw, wherever it comes: the program is gone, and the next one completes what is left."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import os
import shutil
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from migrator import __main__ as program
from migrator.config import container_config
from migrator.copies import after_crash, bases, origins
from migrator.errors.connection import ConnectionLost
from migrator.errors.memory import DumpRefused
from migrator.errors.outcomes import SourceRunsAgain
from migrator.host import btrfs
from migrator.record import container_lock
from migrator.record.journal import Journal, Migration
from migrator.record.migration_paths import Layout
from migrator.record.states import Event, Role, State
from stages.steps import freeze_and_offer, give_back, offer, thaw_again
from tests.migrator.wire import by_op
from tests.stages.journals import dumping, journal  # noqa: F401 -- a fixture

CUT = ConnectionLost(destination="hostb", reason="cut")


class There:
    peer_host = "hostb"

    @by_op
    def call_within(self, *_: object, **__: object) -> dict[str, Any]:
        raise CUT


@pytest.fixture
def left(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """What a dump has made, of a container that is frozen, fenced; folders are subvolumes. To thaw is nothing here."""
    migration = dumping(journal)
    here = Layout.of(migration)
    for path in (here.container, here.image_folders()[1], here.snapshot(1)):
        path.mkdir(parents=True)
    container_config.fence(here.container, "lxc.uts.name = web\n", migration.id, "no")
    monkeypatch.setattr(btrfs, "is_subvolume", lambda path: path.is_dir() and path == here.snapshot(1))
    monkeypatch.setattr(btrfs, "delete", lambda path: shutil.rmtree(path, ignore_errors=True))
    monkeypatch.setattr(Layout, "own_snapshots", lambda self: [self.snapshot(1)] if self.snapshot(1).is_dir() else [])
    monkeypatch.setattr(thaw_again, "thaw_source", lambda _: True)
    monkeypatch.setattr(origins, "is_there", lambda _: True)
    monkeypatch.setattr(after_crash, "where", lambda _: "")
    monkeypatch.setattr(bases, "held", lambda *_, **__: [])
    return here


def ends_at(path: Path, work: Callable[[Migration], object], place: tuple[Any, str], times: int,
            after: bool) -> bool:
    """Do `work` in a process of its own, where Ctrl-C is pressed twice at a step; whether it came to that."""
    if child := os.fork():
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGINT
    try:
        signal.signal(signal.SIGINT, program._interrupt)
        honest, left = getattr(*place), [times]

        def step(*given: Any, **more: Any) -> Any:
            left[0] -= 1
            if left[0] == 0 and not after:
                press_twice()
            done = honest(*given, **more)
            if left[0] == 0:
                press_twice()
            return done

        setattr(*place, step)
        with Journal(path) as journal:
            found = journal.by_id("0badc0de", Role.SOURCE)
            assert found
            with container_lock.held_back():
                work(found)
    except SourceRunsAgain:
        pass
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def press_twice() -> None:
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGINT)


def given_up(migration: Migration) -> None:
    offer.give_up(migration, There(), CUT)  # type: ignore[arg-type]


def rolled_back(migration: Migration) -> None:
    give_back.roll_back(migration, lambda: "")


def nothing_left(here: Layout) -> bool:
    return not (here.images() or here.own_snapshots() or here.work.exists()
                or container_config.fence_of((here.container / "config").read_text()))


IMAGES, SNAPSHOT, FENCE, RECORD = (Layout, "drop_images"), (btrfs, "delete"), (container_config, "unfence"), (
    Migration, "move")


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(("work", "place", "times"), [
    *((given_up, place, 1) for place in (IMAGES, SNAPSHOT, FENCE, RECORD)),
    *((rolled_back, place, 1) for place in (IMAGES, SNAPSHOT, (Layout, "tidy"), FENCE, RECORD)),
    (rolled_back, RECORD, 2),
])
def test_the_next_start_completes_it(journal: Journal, left: Layout, work: Callable[[Migration], None],
                                     place: tuple[Any, str], times: int, after: bool) -> None:
    assert ends_at(journal.path, work, place, times, after)
    migration = journal.by_id("0badc0de", Role.SOURCE)
    assert migration
    if migration.state is State.DUMPING:
        freeze_and_offer.heal(migration)
        assert str(migration.state) == "prepared" and left.images() is None and not left.snapshot(1).exists()
        assert not container_config.fence_of((left.container / "config").read_text())
    if not migration.ended:
        give_back.roll_back(migration, lambda: "")
    assert str(migration.state) == "rolled-back" and nothing_left(left)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(("place", "times"), [(RECORD, 1), (IMAGES, 1), (RECORD, 2)])
def test_where_an_offer_is_refused_it_does_not_keep_it_from_the_thaw(journal: Journal, left: Layout, after: bool,
                                                                     times: int, place: tuple[Any, str],
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    runs = journal.path.with_name("runs")

    def thaw(_: Migration) -> bool:
        runs.touch()
        return True

    class Refuses(There):
        @by_op
        def call_and_go(self, *_: object, **__: object) -> dict[str, Any]:
            raise DumpRefused(name="web", reason="it is incomplete")

    def offer_it(migration: Migration) -> None:
        offer.make(migration, Refuses())  # type: ignore[arg-type]

    monkeypatch.setattr(thaw_again, "thaw_source", thaw)
    made = journal.by_id("0badc0de", Role.SOURCE)
    assert made
    made.move(Event.OFFER)
    ended = ends_at(journal.path, offer_it, place, times, after)
    assert runs.exists() and ended is ((place, times) != (RECORD, 1))
    migration = journal.by_id("0badc0de", Role.SOURCE)
    assert migration and migration.state in (State.DUMPING, State.PREPARED)
    give_back.roll_back(migration, lambda: "")
    assert str(migration.state) == "rolled-back" and nothing_left(left)
