# SPDX-License-Identifier: GPL-2.0-or-later
"""Both state machines together: everything that can happen is tried (docs/model.md)."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from migrator.record.states import ENDED, Event, Role, State
from tests.migrator.record.role_states import OF_ROLE
from tests.model import destination_answers, destination_commands, programs, source_programs, source_word
from tests.model.explorer import WAYS, Explored, ends, explore, finished, page, runs_again
from tests.model.programs import ARRIVING, TAKEN


@pytest.fixture(scope="module")
def found() -> Explored:
    return explore()


def test_never_two_copies(found: Explored) -> None:
    """`explore` checks each world that it reaches; this makes sure that it has been everywhere."""
    worlds = found.depth
    assert len(worlds) > 10_000
    assert {world.source for world in worlds} == {None, *OF_ROLE[Role.SOURCE]}
    assert {world.destination for world in worlds} == {None, *OF_ROLE[Role.DESTINATION]}
    assert {world.program for world in worlds} == {"", *programs.PROGRAMS}
    assert {(world.source, world.destination) for world in worlds} >= {
        (State.FINISHED, State.FINISHED), (State.ROLLED_BACK, State.ABANDONED), (State.OFFERED, State.OWNED),
        (State.OFFERED, State.ABANDONED), (State.DUMPED, State.RESTORING), (State.ROLLED_BACK, State.IMPORTED),
        (State.OFFERED, State.DUMP_RECEIVED), (State.ROLLED_BACK, State.OWNED),
    }
    late = {label.split()[0] for label in found.transitions if label.endswith("arrives late")}
    assert late == set(destination_answers.HANDLERS) - {"running"}, "`running` only asks"


@pytest.mark.parametrize("way", WAYS)
def test_every_way_leads_to_an_end(found: Explored, way: str) -> None:
    """From wherever it was left: and forward, unless it was given up, or cannot go forward any more."""
    for world in found.idle:
        if world.gone or world.forgot:
            continue
        here = ends(world, way)
        if way != "resume on the source" or world.source in ENDED:
            continue
        given_up = (world.source is State.ROLLING_BACK or world.destination in (State.ABANDONING, State.ABANDONED)
                    or world.has_left or world.given_way or runs_again(world))
        lost = world.source in (State.OFFERED, State.DUMPED) and world.destination not in TAKEN | ARRIVING
        no_images = world.destination in (State.OWNED, State.RESTORING) and not (
            world.restorable or world.there == "runs"
            or (world.mark and world.place.may_go and world.destination is State.RESTORING))
        assert (here.source is State.FINISHED) == (not given_up and not lost and not no_images), f"{world}: {here}"


def test_a_destination_that_is_gone_leaves_one_way(found: Explored) -> None:
    """A source that has offered the token and hears nothing: only the forced rollback, and that leads to an end."""
    for world in found.idle:
        if world.gone:
            program = "rollback alone" if world.source is State.ROLLING_BACK else "rollback forced"
            here = world if world.source in ENDED else finished(world._replace(program=program, word=False))
            assert here.source is State.ROLLED_BACK and here.may_run_here


def test_a_destination_that_has_forgotten_it_leaves_one_way(found: Explored) -> None:
    """The forced rollback, where it does not run there; the forced end, where it is on record that it does."""
    forgotten = [world for world in found.idle if world.forgot and not world.gone]
    assert {world.source for world in forgotten} >= {State.OFFERED, State.DUMPED, State.FINISHING, State.FINISHED}
    for world in forgotten:
        if world.source is State.FINISHING:
            assert finished(world._replace(program="finish forced")).source is State.FINISHED
        elif world.source in (State.OFFERED, State.DUMPED) and world.there == "stopped" and world.fenced_there:
            here = finished(world._replace(program="rollback forced", word=False))
            assert here.source is State.ROLLED_BACK and here.may_run_here
        elif world.source in (State.OFFERED, State.DUMPED) and world.there == "runs" and not world.given_way:
            offered = " offered" * (world.source is State.OFFERED)
            here = finished(world._replace(program=f"finish forced{offered}"))
            assert here.source is State.FINISHED and not here.may_run_here


def test_the_page_is_current(found: Explored) -> None:
    """docs/model.md says what this search has seen, with all attempts; `make docs` writes it."""
    text = (Path(__file__).parents[2] / "docs" / "model.md").read_text()
    if programs.DUMPS == programs.ALL_DUMPS:
        assert text == page(found)
    else:
        told = {line.split(" | ")[0].removeprefix("| ") for line in text.splitlines() if line.startswith("| ")}
        assert told >= set(found.transitions), "something happens of which the page does not tell"


def test_the_model_knows_every_event() -> None:
    """An event that the tables get must be taught to the model too."""
    words = {word for steps in programs.PROGRAMS.values() for word in steps}
    text = "".join(inspect.getsource(part) for part in (
        destination_answers, destination_commands, source_programs, source_word))
    words |= {event for event in Event if f"Event.{event.name}" in text}
    assert {*words} >= set(Event)
