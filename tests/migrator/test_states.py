"""The state machines as data, and both of them together: every order of steps, crashes and lost messages is tried."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrator import states
from migrator.states import (
    ENDED,
    FROZEN,
    NEXT,
    TABLES,
    Event,
    IllegalMove,
    Owner,
    Role,
    State,
    Verdict,
    after,
    decide,
    next_stage,
    owner,
    step,
)

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
#
# A model of what the stages do: which records are written in which order around which acts and messages. A message
# can arrive at once, late, or never; its answer can get lost; each program can be killed between any two steps.
# Keep it in step with stages/*.py.

# What the programs on the source do. An event is recorded; `call:X` asks the destination and waits; the others act.
PROGRAMS: dict[str, tuple[str, ...]] = {
    "prepare-data": ("send", "call:begin", "call:receive", "call:received", "sent"),
    "create-dump": ("call:dump-begin", "freeze", "act:freeze", "offer", "call:own", "taken"),
    "undo": ("act:thaw", "thaw", "call:dump-drop"),
    "offer again": ("call:own", "taken"),
    "learn": ("taken",),
    "refused": ("refused", "act:thaw", "thaw", "call:dump-drop"),
    "heal": ("act:thaw", "thaw"),
    "rollback": ("call:abandon", "roll-back", "act:thaw", "rolled-back"),
    "rollback alone": ("roll-back", "act:thaw", "rolled-back"),
    # What migrate and resume ask for over their own connection.
    "import over": ("call:import",),
    "restore over": ("call:restore",),
    "restore offered": ("taken", "call:restore"),
    "finish": ("call:running", "finish", "act:kill", "call:finish", "finished"),
    "finish offered": ("call:running", "taken", "finish", "act:kill", "call:finish", "finished"),
}
OK, REFUSED, BUSY, SILENCE = "ok", "refused", "busy", "silence"


class Flying(NamedTuple):
    """A request that has not arrived yet. Its connection has the container locked if it had made a request before."""

    request: str
    locked: bool


@dataclasses.dataclass(frozen=True)
class World:
    """Both journals, where the programs stand, what is on its way, and where the container really runs."""

    source: State | None = None
    source_owner: Owner = Owner.SOURCE
    destination: State | None = None
    program: str = ""  # that runs on the source
    step: int = 0
    waiting: bool = False  # for the answer to the call at `step`
    flying: frozenset[Flying] = frozenset()
    restoring: bool = False  # a restore-dump runs on the destination and has the container locked
    runs_here: bool = True
    runs_there: bool = False
    exists_here: bool = True  # not killed by finish

    def but(self, **changes: object) -> World:
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    @property
    def destination_owner(self) -> Owner:
        return owner(self.destination) if self.destination else Owner.SOURCE

    @property
    def idle(self) -> bool:
        return not self.program and not self.restoring


def check(world: World) -> None:
    """What must hold in every world."""
    assert not (world.runs_here and world.runs_there), f"two copies run: {world}"
    both = world.source_owner is Owner.SOURCE and world.destination_owner is Owner.DESTINATION
    assert not both, f"two owners: {world}"
    if world.source_owner is not Owner.SOURCE and world.source is not State.ROLLING_BACK:
        assert not world.runs_here, f"runs without the token: {world}"
    if world.runs_there:
        assert world.destination_owner is Owner.DESTINATION, f"runs without the token: {world}"
    if world.runs_here and world.source:
        # `dumping` and `rolling-back` are recorded before the act that they announce.
        assert world.source not in FROZEN - {State.DUMPING, State.ROLLING_BACK}, f"should be frozen: {world}"
    assert world.exists_here or world.runs_there, f"lost: {world}"
    if world.source is State.ROLLED_BACK and not world.program:
        assert world.runs_here, f"rolled back and does not run: {world}"


def moves(world: World) -> Iterator[World]:
    """Everything that can happen next."""
    yield from source_moves(world)
    yield from destination_moves(world)
    for late in world.flying - {awaited(world)}:  # nobody waits for the answer any more
        for there, _ in answers(world, late.request):
            yield there.but(flying=there.flying - {late})


def awaited(world: World) -> Flying | None:
    """The request whose answer the source's program waits for."""
    if not world.waiting:
        return None
    steps = PROGRAMS[world.program]
    earlier = any(step.startswith("call:") for step in steps[: world.step])
    return Flying(steps[world.step].removeprefix("call:"), earlier)


def source_moves(world: World) -> Iterator[World]:
    if not world.program:
        for stage in ("prepare-data", "create-dump", "finish", "rollback"):
            yield from begin(world, stage)
        yield from begin_over(world)
        return
    yield world.but(program="", step=0, waiting=False)  # killed
    yield from go_on(world)


def begin(world: World, stage: str) -> Iterator[World]:
    """A command is typed on the source. It may ask the destination for its state first, which changes nothing."""
    if stage == "create-dump" and world.source is State.DUMPING:
        yield world.but(program="heal")
        return
    there = None if stage == "rollback" else world.destination
    if stage == "prepare-data" and world.source in ENDED:
        return  # another migration
    verdict = decide(stage, world.source, there).verdict
    if stage == "create-dump" and world.source is State.OFFERED:
        if verdict is not Verdict.REFUSE:
            yield world.but(program="learn" if verdict is Verdict.ALREADY else "offer again")
        return
    if verdict is Verdict.GO:
        learns = stage == "finish" and world.source is State.OFFERED
        yield world.but(program="finish offered" if learns else stage)


def begin_over(world: World) -> Iterator[World]:
    """migrate or resume has the destination do its next stage."""
    stage = step(world.source, world.destination)
    if stage == "import-data":
        yield world.but(program="import over")
    elif stage == "restore-dump":
        yield world.but(program="restore offered" if world.source is State.OFFERED else "restore over")


def go_on(world: World) -> Iterator[World]:
    """The program takes its next step."""
    steps = PROGRAMS[world.program]
    if world.step == len(steps):
        yield world.but(program="", step=0)
        return
    step = steps[world.step]
    if not step.startswith("call:"):
        yield done(act(world, step) if step.startswith("act:") else record(world, Event(step)))
        if world.program == "create-dump":  # freeze, dump or sending may fail, or take too long
            yield from failed(world)
        return
    if not world.waiting:
        sent = world.but(waiting=True)
        call = awaited(sent)
        assert call
        yield sent.but(flying=world.flying | {call})
        return
    call = awaited(world)
    if call in world.flying:
        for there, answer in answers(world, call.request):
            # An older connection that has the container locked has ended, or this one would have been told to wait.
            arrived = there.but(flying=frozenset(other for other in there.flying - {call} if not other.locked))
            if answer == OK:
                yield done(arrived)
            elif answer == REFUSED or (answer == BUSY and call.request != "own"):
                yield from refused(arrived)  # only the word of the one who has the lock counts for `own`
            yield from broken(arrived)  # the answer gets lost
    yield from broken(world)


def done(world: World) -> World:
    return world.but(step=world.step + 1, waiting=False)


def record(world: World, event: Event) -> World:
    """As `Migration.move` does."""
    new = after(Role.SOURCE, world.source, event)
    token = owner(new, world.source)
    if new is State.ROLLING_BACK and world.source is State.ROLLING_BACK:
        token = world.source_owner
    return world.but(source=new, source_owner=token)


def act(world: World, step: str) -> World:
    if step == "act:kill":
        return world.but(exists_here=False, runs_here=False)
    return world.but(runs_here=step == "act:thaw" and world.exists_here)


def failed(world: World) -> Iterator[World]:
    """create-dump fails by itself: it thaws only if the token was not offered."""
    if world.source is State.DUMPING:
        yield world.but(program="undo", step=0, waiting=False)


def refused(world: World) -> Iterator[World]:
    """The destination has answered with an error."""
    if world.program in ("create-dump", "offer again") and world.source is State.OFFERED:
        yield world.but(program="refused", step=0, waiting=False)
    elif world.program == "create-dump" and world.source is State.DUMPING:
        yield world.but(program="undo", step=0, waiting=False)
    elif world.program == "rollback":
        runs = world.destination in (State.RESTORED, State.FINISHED)
        yield from [world.but(program="", step=0, waiting=False)] if runs else unanswered_rollback(world)
    else:
        yield world.but(program="", step=0, waiting=False)


def broken(world: World) -> Iterator[World]:
    """The connection breaks while the program waits."""
    if world.program == "create-dump" and world.source is State.DUMPING:
        yield world.but(program="undo", step=0, waiting=False)
    elif world.program == "rollback":
        yield from unanswered_rollback(world)
    else:
        yield world.but(program="", step=0, waiting=False)


def unanswered_rollback(world: World) -> Iterator[World]:
    """Without the destination's word a rollback goes on only if the token was never offered."""
    offered = world.source_owner is not Owner.SOURCE
    yield world.but(program="" if offered else "rollback alone", step=0, waiting=False)


REQUESTS: dict[str, tuple[Event, ...]] = {
    "receive": (Event.RECEIVE,), "received": (Event.RECEIVED,), "dump-begin": (Event.RECEIVE_DUMP,),
    "own": (Event.DUMP_RECEIVED, Event.OWN), "abandon": (Event.ABANDON, Event.ABANDONED),
    "finish": (Event.FINISHED,), "import": (Event.IMPORT, Event.IMPORTED),
}


def answers(world: World, request: str) -> Iterator[tuple[World, str]]:
    """What the destination does with a request; it may be killed between two records."""
    state = world.destination
    if world.restoring:
        yield world, BUSY  # restore-dump has the container locked
        return
    if request in ("abandon", "restore") and state is State.RESTORING:
        yield from ((settled, SILENCE) for settled in settle(world))
        for settled in settle(world):
            yield from answers(settled, request)
        return
    if request in ("import", "restore"):
        verdict = decide({"import": "import-data", "restore": "restore-dump"}[request], state).verdict
        if verdict is not Verdict.GO:
            yield world, OK if verdict is Verdict.ALREADY else REFUSED
            return
    if request == "restore":
        begun = world.but(destination=after(Role.DESTINATION, state, Event.RESTORE))
        yield begun.but(restoring=True), SILENCE  # the connection breaks, the restore goes on
        yield begun.but(destination=after(Role.DESTINATION, begun.destination, Event.RESTORE_FAILED)), REFUSED
        yield begun.but(destination=after(Role.DESTINATION, begun.destination, Event.RESTORED), runs_there=True), OK
        return
    if request == "begin":
        if state is None:
            yield world.but(destination=after(Role.DESTINATION, None, Event.RECEIVE)), OK
        else:
            yield world, REFUSED if state in ENDED or state is State.ABANDONING else OK
        return
    if request == "running":
        yield world, OK if state in (State.RESTORED, State.FINISHED) else REFUSED
        return
    if request == "dump-drop":
        dropped = state in (State.RECEIVING_DUMP, State.DUMP_RECEIVED)
        yield world.but(destination=State.IMPORTED) if dropped else world, OK
        return
    taken = request == "own" and state in (State.OWNED, State.RESTORING, State.RESTORED)
    if taken or (request == "abandon" and state is State.ABANDONED):
        yield world, OK
        return
    if request == "abandon" and state in (State.RESTORED, State.FINISHED):
        yield world, REFUSED
        return
    for event in REQUESTS[request]:
        try:
            world = world.but(destination=after(Role.DESTINATION, world.destination, event))
        except IllegalMove:
            yield world, REFUSED
            return
        yield world, SILENCE
    yield world, OK


def destination_moves(world: World) -> Iterator[World]:
    """Commands that are typed on the destination, step by step."""
    state = world.destination
    if world.restoring:
        yield world.but(restoring=False)  # killed before the container runs, or after
        if world.runs_there:
            yield world.but(restoring=False, destination=after(Role.DESTINATION, state, Event.RESTORED))
        else:
            yield world.but(runs_there=True)
        # The attempt fails: what it has started is ended, then that is recorded.
        failing = after(Role.DESTINATION, state, Event.RESTORE_FAILED)
        yield world.but(restoring=False, runs_there=False, destination=failing)
        return
    if decide("import-data", state).verdict is Verdict.GO:
        importing = world.but(destination=after(Role.DESTINATION, state, Event.IMPORT))
        yield importing
        yield importing.but(destination=after(Role.DESTINATION, importing.destination, Event.RECEIVE))  # damaged
        yield importing.but(destination=after(Role.DESTINATION, importing.destination, Event.IMPORTED))
    if decide("restore-dump", state).verdict is Verdict.GO:
        if state is State.RESTORING:
            yield from settle(world)
        else:
            yield world.but(restoring=True, destination=after(Role.DESTINATION, state, Event.RESTORE))


def settle(world: World) -> Iterator[World]:
    """After a restore-dump that was killed: either it runs, or what is left is ended."""
    event = Event.RESTORED if world.runs_there else Event.RESTORE_FAILED
    yield world.but(destination=after(Role.DESTINATION, world.destination, event))


def explored() -> set[World]:
    """Every world that can be reached."""
    waiting, found = [World()], {World()}
    while waiting:
        for world in moves(waiting.pop()):
            if world not in found:
                check(world)
                found.add(world)
                waiting.append(world)
    return found


@pytest.fixture(scope="module")
def worlds() -> set[World]:
    return explored()


def test_at_most_one_copy_runs_and_has_the_token(worlds: set[World]) -> None:
    """`check` has looked at each; this one makes sure that there was something to look at."""
    assert len(worlds) > 1000
    assert {world.source for world in worlds} == {None, *OF_ROLE[Role.SOURCE]}
    assert {world.destination for world in worlds} == {None, *OF_ROLE[Role.DESTINATION]}
    assert {(world.source, world.destination) for world in worlds} >= {
        (State.FINISHED, State.FINISHED), (State.ROLLED_BACK, State.ABANDONED), (State.OFFERED, State.OWNED),
        (State.OFFERED, State.ABANDONED), (State.DUMPED, State.RESTORING), (State.ROLLED_BACK, State.IMPORTED),
    }


def test_the_checks_find_a_broken_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same search with a rollback that does not wait for the destination's word runs into two copies."""
    monkeypatch.setitem(PROGRAMS, "rollback", PROGRAMS["rollback alone"])
    with pytest.raises(AssertionError, match=r"two copies run|two owners|runs without"):
        explored()


def test_the_advice_leads_to_an_end_from_everywhere(worlds: set[World]) -> None:
    """Follow what `migrator status` advises on the source, with a network that works, and the migration ends."""
    for world in {world.but(flying=frozenset()) for world in worlds if world.idle and world.source}:
        here = world
        for _ in range(12):
            if here.source in ENDED:
                break
            here = follow(here)
        assert here.source in ENDED, f"no end: {world} stays at {here}"
        check(here)
        assert here.runs_here or here.runs_there


def test_migrate_and_resume_lead_to_an_end_from_everywhere(worlds: set[World]) -> None:
    """Take the steps that `states.step` chooses: none is refused, and it ends; forward, unless it was given up."""
    for world in {world.but(flying=frozenset()) for world in worlds if world.idle and world.source}:
        here = world
        for _ in range(12):
            if here.source in ENDED:
                break
            here = driven(here)
        assert here.source in ENDED, f"no end: {world} stays at {here}"
        assert step(here.source, here.destination) == ""
        check(here)
        if world.destination not in (State.ABANDONING, State.ABANDONED) and world.source not in ENDED:
            lost = world.source in (State.OFFERED, State.DUMPED) and world.destination not in (
                State.RECEIVING_DUMP, State.DUMP_RECEIVED, State.OWNED, State.RESTORING, State.RESTORED,
                State.FINISHED)
            forward = world.source is not State.ROLLING_BACK and not lost
            assert (here.source is State.FINISHED and here.runs_there) == forward, f"{world} ends as {here}"


def driven(world: World) -> World:
    """One step of the driver, with a network that works."""
    stage = step(world.source, world.destination)
    started = next(begin_over(world), None) or next(begin(world, stage), None)
    assert started, f"{stage} refuses in {world}"
    while started.program:
        started = next(go_on(started)) if not started.waiting else answered(started)
    return started


def follow(world: World) -> World:
    """Type what the source's state advises, and when that is refused or done already, what the answer advises."""
    assert world.source
    verb, _, place = next_stage(Role.SOURCE, world.source).partition("@")
    on_source = not place
    for _ in range(4):
        here, there = (world.source, world.destination) if on_source else (world.destination, None)
        # A rollback asks by calling `abandon`; what a refusal then advises is what `decide` does.
        decision = decide(verb, here, there)
        if decision.verdict is Verdict.GO or (verb == "create-dump" and here is State.DUMPING):
            break
        verb, _, place = decision.next_stage.partition("@")
        on_source = on_source if not place else place == "source"
    else:
        raise AssertionError(f"the advice goes round in circles: {world}")
    if not on_source:
        return next(destination_run(world))
    started = next(begin(world, verb))
    while started.program:
        started = next(go_on(started)) if not started.waiting else answered(started)
    return started


def answered(world: World) -> World:
    """The request arrives, and so does its answer."""
    request = PROGRAMS[world.program][world.step].removeprefix("call:")
    there, answer = [pair for pair in answers(world, request) if pair[1] != SILENCE][-1]
    there = there.but(flying=frozenset())
    return done(there) if answer == OK else next(refused(there))


def destination_run(world: World) -> Iterator[World]:
    """A command on the destination that succeeds."""
    if decide("import-data", world.destination).verdict is Verdict.GO:
        yield world.but(destination=State.IMPORTED)
    elif world.destination is State.RESTORING:
        yield from settle(world)
    elif decide("restore-dump", world.destination).verdict is Verdict.GO:
        yield world.but(destination=State.RESTORED, runs_there=True)


def test_the_model_knows_every_event() -> None:
    """An event that the tables get must be taught to the model too."""
    modelled = {step for steps in PROGRAMS.values() for step in steps if ":" not in step}
    modelled |= {str(event) for events in REQUESTS.values() for event in events}
    modelled |= {"import", "imported", "restore", "restored", "restore-failed", "drop-dump"}
    assert modelled == {str(event) for event in Event}
    assert states.TABLES.keys() == set(Role)
