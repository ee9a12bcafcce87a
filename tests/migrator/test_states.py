# SPDX-License-Identifier: GPL-2.0-or-later
"""The state machines as data, and both of them together: everything that can happen is tried (docs/model.md)."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrator.states import (
    ENDED,
    NEXT,
    TABLES,
    Event,
    IllegalMove,
    Role,
    State,
    Verdict,
    after,
    decide,
    next_stage,
)
from tests.migrator import model
from tests.migrator.explorer import WAYS, Explored, ends, explore, finished, page, runs_again
from tests.migrator.model import ARRIVING, TAKEN

STAGES = ("prepare-data", "import-data", "create-dump", "restore-dump", "finish", "rollback")
HOST = {stage: Role.DESTINATION if stage in ("import-data", "restore-dump") else Role.SOURCE for stage in STAGES}
OF_ROLE = {role: {*table.values(), *(old for old, _ in table if old)} for role, table in TABLES.items()}
maybe_state = st.none() | st.sampled_from(State)


# --- each machine by itself -----------------------------------------------------------------------------------


@pytest.mark.parametrize("role", Role)
def test_every_state_is_reached_and_can_be_left(role: Role) -> None:
    reached: set[State | None] = {None}
    while more := {new for (old, _), new in TABLES[role].items() if old in reached} - reached:
        reached |= more
    assert reached - {None} == OF_ROLE[role]
    for state in OF_ROLE[role] - ENDED:
        ends = {state}
        while more_ := {new for (old, _), new in TABLES[role].items() if old in ends} - ends:
            ends |= more_
        assert ends & ENDED, f"{role} never ends from {state}"


@pytest.mark.parametrize("role", Role)
def test_an_ended_migration_stays_ended(role: Role) -> None:
    for (old, _), new in TABLES[role].items():
        assert old not in ENDED or new == old


def test_every_state_and_event_is_used() -> None:
    assert OF_ROLE[Role.SOURCE] | OF_ROLE[Role.DESTINATION] == set(State)
    assert {event for table in TABLES.values() for _, event in table} == set(Event)


@pytest.mark.parametrize("role", Role)
def test_every_state_that_has_not_ended_names_its_next_command(role: Role) -> None:
    for state in OF_ROLE[role] - ENDED:
        verb, _, place = next_stage(role, state).partition("@")
        assert verb in STAGES, f"{role} {state}"
        assert place in ("", *(other for other in Role if other != role))
    assert {state for role_, state in NEXT if role_ == role} == OF_ROLE[role] - ENDED
    assert all(next_stage(role, state) == "" for state in OF_ROLE[role] & ENDED)


@given(st.sampled_from(Role), maybe_state, st.sampled_from(Event))
def test_after_knows_its_table_and_nothing_else(role: Role, state: State | None, event: Event) -> None:
    if (state, event) in TABLES[role]:
        assert after(role, state, event) in OF_ROLE[role]
    else:
        with pytest.raises(IllegalMove):
            after(role, state, event)


@given(st.data(), st.sampled_from(STAGES))
def test_decide_always_answers(data: st.DataObject, stage: str) -> None:
    here = data.draw(st.none() | st.sampled_from(sorted(OF_ROLE[HOST[stage]])))
    there = data.draw(maybe_state)
    decision = decide(stage, here, there)
    if decision.verdict is Verdict.REFUSE:
        assert decision.missing
        verb, _, place = decision.next_stage.partition("@")
        assert verb in (*STAGES, "status")
        assert place in ("", "source", "destination")
    else:
        assert not decision.missing


def test_the_command_that_comes_next_is_never_refused() -> None:
    """Whoever follows the advice gets on, whatever the other host's state is (as long as it is one that fits)."""
    for (role, state), stage in NEXT.items():
        verb, _, place = stage.partition("@")
        if not place and verb not in ("create-dump", "finish", "rollback"):  # these also ask the other host
            assert decide(verb, state, None).verdict is not Verdict.REFUSE, f"{role} {state}: {verb}"


def test_a_repeated_stage_does_nothing() -> None:
    for stage, state in (("import-data", State.IMPORTED), ("create-dump", State.DUMPED), ("finish", State.FINISHED),
                         ("restore-dump", State.RESTORED), ("rollback", State.ROLLED_BACK)):
        assert decide(stage, state).verdict is Verdict.ALREADY
    assert decide("prepare-data", State.PREPARED, State.RECEIVED).verdict is Verdict.ALREADY


# --- both together --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found() -> Explored:
    return explore()


def test_never_two_copies(found: Explored) -> None:
    """`explore` checks each world that it reaches; this makes sure that it has been everywhere."""
    worlds = found.depth
    assert len(worlds) > 10_000
    assert {world.source for world in worlds} == {None, *OF_ROLE[Role.SOURCE]}
    assert {world.destination for world in worlds} == {None, *OF_ROLE[Role.DESTINATION]}
    assert {world.program for world in worlds} == {"", *model.PROGRAMS}
    assert {(world.source, world.destination) for world in worlds} >= {
        (State.FINISHED, State.FINISHED), (State.ROLLED_BACK, State.ABANDONED), (State.OFFERED, State.OWNED),
        (State.OFFERED, State.ABANDONED), (State.DUMPED, State.RESTORING), (State.ROLLED_BACK, State.IMPORTED),
        (State.OFFERED, State.DUMP_RECEIVED), (State.ROLLED_BACK, State.OWNED),
    }
    late = {label.split()[0] for label in found.transitions if label.endswith("arrives late")}
    assert late == set(model.HANDLERS) - {"running"}, "`running` only asks"


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


def test_the_page_is_current(found: Explored) -> None:
    """docs/model.md says what this search has seen, with all attempts; `make docs` writes it."""
    text = (Path(__file__).parents[2] / "docs" / "model.md").read_text()
    if model.DUMPS == model.ALL_DUMPS:
        assert text == page(found)
    else:
        told = {line.split(" | ")[0].removeprefix("| ") for line in text.splitlines() if line.startswith("| ")}
        assert told >= set(found.transitions), "something happens of which the page does not tell"


def test_the_model_knows_every_event() -> None:
    """An event that the tables get must be taught to the model too."""
    words = {word for steps in model.PROGRAMS.values() for word in steps}
    text = Path(model.__file__).read_text()
    words |= {event for event in Event if f"Event.{event.name}" in text}
    assert {*words} >= set(Event)
