# SPDX-License-Identifier: GPL-2.0-or-later
"""The state machines as data, each by itself; both of them together: tests/model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrator.record.decisions import NEXT, Verdict, decide, next_stage
from migrator.record.states import ENDED, TABLES, Event, IllegalMove, Role, State, after
from tests.migrator.record.role_states import OF_ROLE

STAGES = ("prepare-data", "import-data", "create-dump", "restore-dump", "finish", "rollback")
HOST = {stage: Role.DESTINATION if stage in ("import-data", "restore-dump") else Role.SOURCE for stage in STAGES}
maybe_state = st.none() | st.sampled_from(State)


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
