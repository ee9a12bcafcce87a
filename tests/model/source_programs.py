# SPDX-License-Identifier: GPL-2.0-or-later
"""What happens on the source: commands that are typed there, and the steps of the program that runs."""

from __future__ import annotations

from collections.abc import Iterator

from migrator.copies.resume_rules import gives_back
from migrator.record.decisions import Verdict, decide, step
from migrator.record.states import ENDED, Event, Owner, Role, State, after, owner
from tests.model import destination_answers, programs, reply, source_word
from tests.model.around import strangers_on_the_source
from tests.model.programs import DUMPING_PROGRAMS, GOES_ON, PROGRAMS
from tests.model.world import FROZEN, RUNS, STOPPED, World

S = State


def source_moves(world: World) -> Iterator[tuple[str, World]]:
    if world.program:
        yield "the source's program is killed", world._replace(program="", step=0, waiting=False)
        for changed in go_on(world):
            yield world.program, changed
    else:
        for stage in ("prepare-data", "create-dump", "finish", "rollback"):
            for changed in begin(world, stage):
                yield f"{stage} is typed", changed
        for changed in begin_over(world):
            yield "resume is typed on the source", changed
        if world.source in (S.OFFERED, S.DUMPED):
            if not world.gone and world.there == STOPPED and world.fenced_there:
                yield "the destination is lost", world._replace(gone=True)
            yield "rollback is forced", world._replace(program="rollback forced")
    if world.source is S.FINISHING and not world.program and world.forgot:
        yield "finish is forced on the source", world._replace(program="finish forced")
    if world.source in (S.OFFERED, S.DUMPED) and world.forgot and world.there == RUNS and not (
            world.program or world.gone or world.away or world.given_way):
        offered = " offered" * (world.source is S.OFFERED)
        yield "finish is forced on the source", world._replace(program=f"finish forced{offered}")
    if world.here != STOPPED or world.program:
        yield "the source is rebooted", world._replace(here=STOPPED, program="", step=0, waiting=False)
    if world.here == STOPPED and not world.fenced_here:
        yield "it is started on the source", world._replace(here=RUNS)
    if world.attempt < max(programs.DUMPS, 2):
        yield from strangers_on_the_source(world)


def begin(world: World, stage: str) -> Iterator[World]:
    """A command is typed on the source. It may ask the destination for its state first, which changes nothing."""
    if stage == "create-dump" and world.source is S.DUMPING:
        yield world._replace(program="heal")
        return
    if world.gone and stage != "rollback":
        return
    if stage in ("prepare-data", "create-dump") and world.source in (None, S.PREPARING, S.PREPARED) \
            and world.here != RUNS:
        return  # ContainerNotRunning
    if stage == "create-dump" and world.source is S.PREPARED and world.attempt == programs.DUMPS:
        return
    if stage == "prepare-data" and world.source in ENDED:
        return  # another migration
    verdict = decide(stage, world.source, None if stage == "rollback" else world.destination).verdict
    if stage == "create-dump" and world.source is S.OFFERED:
        if verdict is not Verdict.ALREADY and not source_word.stands_still(world):
            return
        if verdict is not Verdict.REFUSE:
            yield world._replace(program="learn" if verdict is Verdict.ALREADY else "offer again")
    elif stage == "rollback" and world.source is S.ROLLING_BACK:
        yield world._replace(program="rollback alone")  # the destination's word is on record, or was not needed
    elif verdict is Verdict.GO:
        learns = stage == "finish" and world.source is S.OFFERED
        yield world._replace(program="finish offered" if learns else stage)
        if stage == "create-dump":
            yield world._replace(program="create-dump --no-memory")


def begin_over(world: World) -> Iterator[World]:
    """migrate or resume has the destination do its next stage."""
    if world.gone:
        return
    stage = step(world.source, world.destination)
    if stage == "import-data":
        yield world._replace(program="import over")
    elif stage == "restore-dump" and not source_word.stands_still(world):
        yield world._replace(program="rollback")
    elif stage == "restore-dump":
        yield world._replace(program="restore offered" if world.source is S.OFFERED else "restore over")


def go_on(world: World) -> Iterator[World]:
    """The program takes its next step."""
    steps = PROGRAMS[world.program]
    if world.step == len(steps):
        yield world._replace(program="", step=0)
        return
    word = steps[world.step]
    if not word.startswith("call:"):
        yield done(act(world, word))
        if world.program in DUMPING_PROGRAMS and world.source is S.DUMPING:
            yield undone(world)  # freeze, dump or sending fail, take too long, or are interrupted
        return
    message = source_word.awaited(world)
    if not world.waiting:
        flying = world.flying if world.gone else world.flying | {message}
        yield programs.kept(world._replace(waiting=True, flying=flying))
        return
    if not world.gone:
        leave = source_word.stands_still(world) or message.request not in GOES_ON
        for there, answer in destination_answers.answers(world, message, leave=leave):
            yield from answered(there, answer if leave or answer != reply.OK else reply.TROUBLE)
    if message.request == "abandon":
        for known in (False, True):
            yield from another_answers(world, known=known)
    for silence in (True, False) if world.gone else (False,):
        yield from broken(world, silence=silence)


def done(world: World) -> World:
    return world._replace(step=world.step + 1, waiting=False)


def act(world: World, word: str) -> World:
    match word:
        case "number":
            return world._replace(attempt=world.attempt + 1)
        case "forcing":
            return world  # who asks is told from now on, see `told`
        case "act:freeze":
            return world._replace(here=FROZEN)
        case "act:thaw":
            return world._replace(here=RUNS)  # from its disk, where the memory has gone
        case "act:fence":
            return world._replace(fenced_here=True)
        case "act:unfence":
            return world._replace(fenced_here=False)
        case "act:kill" | "act:stop":
            return world._replace(here=STOPPED)
    state = after(Role.SOURCE, world.source, Event(word))
    return world._replace(source=state, past=world.past and owner(state) is not Owner.SOURCE)


def answered(world: World, answer: str) -> Iterator[World]:
    """What the program does with an answer."""
    if answer == reply.OK:
        yield done(world)
    elif answer == reply.REFUSED and world.source is S.OFFERED and world.program in (*DUMPING_PROGRAMS, "offer again"):
        yield world._replace(program="refused", step=0, waiting=False)
    elif answer == reply.REFUSED and world.program in ("rollback", "rollback forced"):
        yield world._replace(program="", step=0, waiting=False)  # it runs there already
    elif answer == reply.UNKNOWN:
        yield from broken(world, silence=world.there == STOPPED and world.fenced_there)  # as is said in `lost`
    elif answer != reply.LOST:
        yield from broken(world)


def another_answers(world: World, *, known: bool) -> Iterator[World]:
    """It is not the host that the migration went to; where it is `known` there, it has another ticket."""
    ticket = "" if world.source is S.PREPARING and world.destination is None else "the one"
    offered = world.source_owner is not Owner.SOURCE
    if gives_back(ticket, known=known, answered="another" if known else "", offered=offered):
        yield done(world)
    else:
        yield from broken(world)


def broken(world: World, *, silence: bool = False) -> Iterator[World]:
    """The connection breaks while the program waits, it is interrupted, or there is an error that settles nothing.

    With `silence` the destination gives no sign of life, or has forgotten it. Then a force first waits until its word
    is over: nothing happens before that, but what else can.
    """
    if world.program == "rollback forced" and is_lost(silence):
        if is_over(world):
            yield done(world)._replace(forced=True)
    elif world.program in DUMPING_PROGRAMS and world.source is S.DUMPING:
        yield undone(world)
    elif world.program == "rollback" and world.source_owner is Owner.SOURCE:
        yield world._replace(program="rollback alone", step=0, waiting=False)
    else:
        yield world._replace(program="", step=0, waiting=False)


def is_over(world: World) -> bool:
    """Whether a forced rollback has waited for long enough."""
    return not world.word


def is_lost(silence: bool) -> bool:
    """What a forced rollback takes for a host that is lost: nothing but silence."""
    return silence


def undone(world: World) -> World:
    return world._replace(program="undo", step=0, waiting=False)
