# SPDX-License-Identifier: GPL-2.0-or-later
"""The model of the destination does what its handlers do: both are asked the same, in any order, side by side."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from migrator.base import boot_clock
from migrator.copies.origins import Whose, whose
from migrator.errors.containers import AlreadyRuns
from migrator.errors.memory import DumpRefused
from migrator.host import lxc
from migrator.record import container_lock, image_folders, lxc_disk
from migrator.record.journal import Journal, Migration
from migrator.record.migration_paths import Layout
from migrator.record.states import Event, Role, State
from stages.steps import settling
from tests.effort import tries
from tests.migrator.layouts import layout_of
from tests.model import around, destination_answers, reply
from tests.model.world import RAN_THERE, Message, World
from tests.stages.answering import ID, Destination, arrives

# Asked of both. "arrives" stands for all data of the dump; "restored" for a restore that has succeeded, with what it
# removes; "killed" for one of which only the beginning was recorded; "stopped" for one that was killed once it had let
# it run, and was settled in the same boot, with nothing that runs; "made" for somebody else's container that is made
# where none is, or takes the place of ours; "disk" for the disk with the LXC path that goes, or comes back.
requests = st.sampled_from(["dump-begin", "dump-begin", "arrives", "own", "own", "own", "dump-drop", "abandon",
                            "running", "finish", "begin", "restored", "killed", "stopped", "made", "disk"])
STOPPED = [("dump-begin", 1), ("arrives", 1), ("own", 1), ("stopped", 1)]
asked = st.lists(st.tuples(requests, st.integers(1, 3)), max_size=12)


@pytest.fixture(autouse=True)
def no_container(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed restore left nothing that runs; what it takes to see that needs LXC, which is not there."""
    monkeypatch.setattr(lxc, "Container", lambda *_: SimpleNamespace(state="STOPPED", rootfs="/nowhere"))
    monkeypatch.setattr(lxc, "runs_in", lambda *_: False)

    def settle(migration: Migration) -> None:
        lxc_disk.require(layout_of(migration))
        migration.move(Event.RESTORE_FAILED)

    monkeypatch.setattr(settling, "settle", settle)


@settings(deadline=None, max_examples=tries(25, 400))
@given(asked)
@example([*STOPPED, ("running", 1), ("abandon", 1), ("disk", 1), ("running", 1), ("abandon", 1)])
@example([*STOPPED, ("abandon", 1), ("begin", 1), ("own", 1), ("finish", 1), ("running", 1)])
def test_model_and_handlers_agree(requests: list[tuple[str, int]]) -> None:
    with contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        top = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        patch.setattr(image_folders, "RUNTIME", top / "run")
        patch.setattr(container_lock, "LOCKS", top / "run" / "lock")
        (top / "pool").mkdir()
        there = Destination(stack.enter_context(Journal(top / "journal.db")), stack, top / "pool")
        stack.callback(image_folders.remove_images, there.layout.image_folders()[0])
        there.ask("begin")
        there.imported()
        world = World(destination=State.IMPORTED, place=Whose.OURS)
        for request, attempt in requests:
            expected = modelled(world, request, attempt)
            answer = real(there, request, attempt)
            found = [each for each, said in expected if (seen(each), said) == (known(there), answer)]
            assert found, f"{request} {attempt} in {seen(world)}: {answer} {known(there)}, the model has {expected}"
            world = found[0]


def modelled(world: World, request: str, attempt: int) -> list[tuple[World, str]]:
    """What the model lets happen: the worlds after it, with what is answered."""
    state = world.destination
    if request == "disk":
        return [(changed, "") for _, changed in around.disk(world)] or [(world, "")]
    if request == "made":
        return [(world if state in RAN_THERE or world.away else world._replace(place=Whose.FOREIGN), "")]
    if request == "arrives":
        return [(world._replace(images=world.attempt_there), "") if state is State.RECEIVING_DUMP else (world, "")]
    if request in ("restored", "killed", "stopped"):
        if state is not State.OWNED or world.away or not world.place.may_go:
            return [(world, "")]
        begun = destination_answers.moved(world, Event.RESTORE)
        if request == "stopped":
            return [(destination_answers.moved(begun._replace(had_stopped=True), Event.RESTORED), "")]
        if request == "restored":
            begun = destination_answers.moved(begun, Event.RESTORED)._replace(images=0)
        return [(begun, "")]
    found = list(destination_answers.answers(world, Message(request, attempt)))
    return [(each, said) for each, said in found if said != reply.LOST]


def real(there: Destination, request: str, attempt: int) -> str:
    """Do the same with the handlers, each over a connection of its own as far as what they remember goes."""
    if request == "arrives":
        if there.state is State.RECEIVING_DUMP:
            arrives(there)
        return ""
    away = away_from(there).exists()
    if request == "disk":
        if away:
            shutil.rmtree(there.pool)
            away_from(there).rename(there.pool)
        elif there.state in around.NEEDS_THE_DISK and there.state is not State.FINISHED:  # none has given way here
            there.pool.rename(away_from(there))
            there.pool.mkdir()
        return ""
    if request == "made":
        if there.state not in RAN_THERE and not away:
            shutil.rmtree(there.layout.container, ignore_errors=True)
            there.layout.container.mkdir()
            (there.layout.container / "config").write_text("lxc.uts.name = another\n")
        return ""
    if request in ("restored", "killed", "stopped"):
        if there.state is State.OWNED and whose(there.layout).may_go:
            there.take(Event.RESTORE, *([Event.RESTORED] if request == "restored" else []))
            if request == "stopped":
                settling.record(migration_of(there), 1.0, had_stopped=boot_clock.BOOT_ID.read_text().strip())
            if request == "restored":
                there.layout.drop_images()
        return ""
    try:
        if request == "finish" and not away and there.state in (State.RESTORED, State.FINISHED):
            there.take(Event.FINISHED)
            return reply.OK
        there.ask(request, attempt=attempt)
    except (DumpRefused, AlreadyRuns):
        return reply.REFUSED
    except Exception:  # whatever it is, the source does not take it for the last word
        return reply.TROUBLE
    return reply.OK


def away_from(there: Destination) -> Path:
    """Where the disk with its LXC path is while it is away."""
    return there.pool.with_name("disk")


def has_a_use_for_images(state: State | None, place: Whose) -> bool:
    """Given up while the disk was away, it keeps those on the disk, and not those in memory."""
    return not (state is State.IMPORTED or (state is State.ABANDONED and place is Whose.OURS))


def seen(world: World) -> tuple[object, ...]:
    images = bool(world.images) and has_a_use_for_images(world.destination, world.place)
    return world.destination, world.attempt_there, images, world.place


def migration_of(there: Destination) -> Migration:
    migration = there.journal.by_id(ID, Role.DESTINATION)
    assert migration
    return migration


def known(there: Destination) -> tuple[object, ...]:
    migration = migration_of(there)
    disk = away_from(there)
    place = whose(Layout(disk if disk.exists() else there.pool, "web", ID))
    images = there.layout.images()
    complete = images is not None and (images / "core-1.img").exists()
    arrived = complete and has_a_use_for_images(migration.state, place)
    return migration.state, migration.handover.attempt, arrived, place


def test_the_comparison_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that takes the token without looking at the number is told apart."""
    honest = destination_answers.HANDLERS["own"]
    monkeypatch.setitem(destination_answers.HANDLERS, "own", lambda world, _: honest(world, world.attempt_there))
    inner = test_model_and_handlers_agree.hypothesis.inner_test  # type: ignore[attr-defined]
    with pytest.raises(AssertionError, match="the model has"):
        inner([("dump-begin", 1), ("dump-begin", 2), ("arrives", 1), ("own", 1)])


def test_so_can_that_of_one_that_has_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(World, "must_choose", property(lambda _: False))
    inner = test_model_and_handlers_agree.hypothesis.inner_test  # type: ignore[attr-defined]
    with pytest.raises(AssertionError, match="the model has"):
        inner([*STOPPED, ("running", 1)])
