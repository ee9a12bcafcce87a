# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands that are typed on the destination, a restore that goes on there, and what befalls that host."""

from __future__ import annotations

from collections.abc import Iterator

from migrator.copies.leave import BY_HAND
from migrator.copies.resume_rules import LETS_RUN, MAY_RESTORE, TAKEN_BACK, must_ask
from migrator.record.states import Event, State
from tests.model import destination_answers, programs, reply, source_word
from tests.model.around import disk, rebooted_there, strangers, unseen
from tests.model.world import FROZEN, POWER_CUT, REBOOTED, RUNS, STOPPED, STRANGER, Message, World

S = State


def destination_moves(world: World) -> Iterator[tuple[str, World]]:
    """Commands that are typed on the destination, and what befalls it."""
    if world.restoring:
        yield from restore_moves(world)
    else:
        for command in TYPED_THERE if world.destination and not world.forgot else ():
            for changed, _ in typed_there(world, command):
                yield f"{command} is typed on the destination", changed
    if world.there == RUNS or world.restoring or world.images or world.word:
        yield REBOOTED, rebooted_there(world, images=False)
        yield REBOOTED, rebooted_there(world, images=True)
    if world.there == STOPPED and not (world.fenced_there or world.away):
        yield "it is started on the destination", world._replace(there=RUNS, had_stopped=False)
    if world.source in (S.OFFERED, S.DUMPED, S.FINISHING) and not (world.restoring or world.forgot):
        yield "the destination's journal is lost", programs.kept(world._replace(
            destination=None, attempt_there=0, images=0, word=False, mark=False, had_stopped=False, forgot=True))
    if world.there == RUNS and world.destination in (S.RESTORING, S.RESTORED) and world.monitor:
        yield "LXC's monitor there ends", world._replace(monitor=False)
    if world.there == RUNS and world.fenced_there:
        yield f"{STRANGER}takes the fence away where it runs", world._replace(fenced_there=False)
    yield from disk(world)
    if world.attempt < max(programs.DUMPS, 2) and not (world.forgot or world.away):
        yield from strangers(world)


FORCED = "restore-dump --force"
TYPED_THERE = {"import-data": "import", "restore-dump": "restore", "resume": "restore", "rollback": "abandon",
               FORCED: "restore", "finish --force": "finish"}


def typed_there(world: World, command: str) -> reply.Answers:
    """The same as the request; but what lets it run has the source asked first, unless its word still holds."""
    if world.away:
        request = command if command == "resume" else TYPED_THERE[command]
        yield from unseen(world, request, lambda seen: typed_there(seen, command), reply.TROUBLE)
        return
    if command == "finish --force" and not may_finish_alone(world):
        yield world, reply.TROUBLE
        return
    if command == "resume" and world.has_left:
        taken_back = source_word.told(world) in TAKEN_BACK
        yield (destination_answers.gave_way(world), reply.OK) if taken_back else (world, reply.TROUBLE)
        return
    if command in ("restore-dump", "resume", FORCED) and world.destination is S.RESTORING:
        world = destination_answers.settled(world)
        yield world, reply.LOST
    stands = world.stands_stopped
    if command == FORCED:
        yield from forced_there(world)
        return
    if command in ("restore-dump", "resume"):
        if stands and command == "restore-dump" and not world.must_choose:
            yield world, reply.TROUBLE  # it advises resume
            return
        if (stands or world.destination in MAY_RESTORE) and must_ask(BY_HAND if world.word and not stands else None):
            said = source_word.told(world)
            if said in TAKEN_BACK and stands:
                yield (destination_answers.gave_way(world), reply.OK) if command == "resume" else (world, reply.TROUBLE)
                return
            if said in TAKEN_BACK:
                command = "rollback"
            elif said not in LETS_RUN or not source_word.stands_still(world):
                yield world, reply.TROUBLE
                return
            else:
                world = source_word.given(world)
                yield world, reply.LOST
        if stands and command == "restore-dump":  # somebody has chosen that
            yield from destination_answers.started(world)
            return
    yield from destination_answers.answers(world, Message(TYPED_THERE[command], 0))


def may_finish_alone(world: World) -> bool:
    """Whether `finish --force` there ends it; as in `stages.steps.force.finish_alone`."""
    return world.destination is S.RESTORED and not (world.stands_stopped or world.is_stopped or world.has_left)


def forced_there(world: World) -> reply.Answers:
    """What `restore-dump --force` does there, see `stages.steps.force.let_run`: the source answers, or is lost."""
    yield world, reply.TROUBLE  # also where it answers that it does not run it
    if not (world.stands_stopped or world.is_stopped or world.destination in MAY_RESTORE):
        return
    if source_word.told(world) in TAKEN_BACK:
        yield from destination_answers.answers(world, Message("abandon", 0))
    elif world.source in LETS_RUN and source_word.stands_still(world) and world.fenced_here:
        yield from let_run_by_force(world)


def let_run_by_force(world: World) -> reply.Answers:
    """The source is silent, and may go on where it was, or come back rebooted, at any moment.

    Until when it may be let run is like a word of the source's, but that nobody has given it. So a rollback that is
    forced there meanwhile waits for it here, which in truth it cannot: who forces on both hosts is left out.
    """
    world = world._replace(word=True, past=False)
    if world.stands_stopped or world.is_stopped:
        yield from destination_answers.started(world)
    else:
        yield from destination_answers.answers(world, Message("restore", 0))


def restore_moves(world: World) -> Iterator[tuple[str, World]]:
    label = "restore-dump"
    if world.destination is S.RESTORED and world.there == STOPPED:
        yield label, world._replace(restoring=False)  # too late, or it does not start
        if in_time(world):
            yield label, destination_answers.gone_on(world)
    elif world.destination is S.RESTORED:
        yield label, world._replace(restoring=False, fenced_there=False, images=0)
    elif world.there == RUNS:
        yield label, programs.kept(destination_answers.moved(world, Event.RESTORED))
    elif world.mark and in_time(world):
        yield label, world._replace(there=RUNS)
    elif world.images and not world.mark:
        yield label, world._replace(mark=True)
    if world.destination is S.RESTORING:  # the attempt fails: what it has started is ended, then that is recorded
        failed = destination_answers.moved(world, Event.RESTORE_FAILED)._replace(
            restoring=False, there=STOPPED, monitor=True, fenced_there=True)
        yield label, failed
        if world.mark and world.place.may_go:
            for images in (False, True):
                yield POWER_CUT, rebooted_there(failed, images=images)._replace(mark=True)
    never_told = world.mark and world.there == STOPPED and world.place.may_go and world.here == FROZEN
    yield "the destination's program is killed", world._replace(
        restoring=False, had_stopped=world.had_stopped or (world.destination is S.RESTORING and never_told))


def in_time(world: World) -> bool:
    """What is looked at last, once the mark is made: whether the source's word still holds."""
    return world.word
