# SPDX-License-Identifier: GPL-2.0-or-later
"""What the destination does with a request, and answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from migrator.copies.origins import Whose
from migrator.record.decisions import Verdict, decide
from migrator.record.states import ENDED, Event, IllegalMove, Role, State, after
from tests.model import programs, reply, source_word
from tests.model.around import unseen
from tests.model.programs import ARRIVING, BY_FORCE, GOES_ON, TAKEN
from tests.model.world import RAN_THERE, RUNS, Message, World

S = State


def moved(world: World, event: Event) -> World:
    state = after(Role.DESTINATION, world.destination, event)
    return world._replace(destination=state, mark=world.mark and state in (S.RESTORING, S.ABANDONING),
                          had_stopped=world.had_stopped and state in RAN_THERE,
                          word=world.word and state in (S.OWNED, S.RESTORING, S.RESTORED))


def answers(world: World, message: Message, *, leave: bool = True) -> Iterator[tuple[World, str]]:
    """What the destination does with a request, and answers; it may be killed between two records.

    Without `leave` nothing is let run: the restore is prepared, and fails.
    """
    if world.restoring:
        yield world, reply.TROUBLE  # a restore has the container locked
        return
    if world.forgot:
        yield world, reply.UNKNOWN
        return
    if world.away:
        yield from unseen(world, message.request, lambda seen: answers(seen, message, leave=leave), reply.TROUBLE)
        return
    if leave and message.request in GOES_ON:
        world = source_word.given(world) if source_word.has_leave(world, message) else world._replace(word=True)
    try:
        for changed, answer in HANDLERS[message.request](world, message.attempt):
            if not leave:
                if changed.there == RUNS != world.there:
                    continue
                changed = changed._replace(restoring=False)
            if changed.destination not in (S.OWNED, S.RESTORING, S.RESTORED):
                changed = changed._replace(word=False)
            changed = programs.kept(changed)
            yield changed, answer
            if answer != reply.LOST:
                yield changed, reply.LOST
    except IllegalMove:
        yield world, reply.TROUBLE


def _begin(world: World, _: int) -> reply.Answers:
    if not world.place.may_be_taken:
        yield world, reply.TROUBLE  # ContainerExists
    elif world.destination is None:
        yield moved(world, Event.RECEIVE), reply.OK
    else:
        yield world, reply.TROUBLE if world.destination in (*ENDED, S.ABANDONING) else reply.OK


def _receive(world: World, _: int) -> reply.Answers:
    yield moved(world, Event.RECEIVE), reply.OK


def _received(world: World, _: int) -> reply.Answers:
    yield moved(world, Event.RECEIVED), reply.OK


def _import(world: World, _: int) -> reply.Answers:
    if decide("import-data", world.destination).verdict is not Verdict.GO:
        yield world, reply.OK if decide("import-data", world.destination).verdict is Verdict.ALREADY else reply.TROUBLE
        return
    world = moved(world, Event.IMPORT)
    yield world, reply.LOST
    yield moved(world, Event.RECEIVE), reply.TROUBLE  # damaged
    if not world.place.may_be_taken:
        yield world, reply.TROUBLE  # ContainerExists
        return
    world = world._replace(place=Whose.OURS)
    yield world, reply.LOST
    yield moved(world, Event.IMPORTED), reply.OK


def _dump_begin(world: World, attempt: int) -> reply.Answers:
    if attempt <= world.attempt_there:
        yield world, reply.TROUBLE
        return
    if not world.place.may_go and world.destination in (S.IMPORTED, *ARRIVING):
        gone = world.place is Whose.NOBODYS  # it is sent and defined anew
        yield moved(world, Event.RECEIVE) if gone else world, reply.TROUBLE
        return
    yield moved(world, Event.RECEIVE_DUMP)._replace(attempt_there=attempt, images=0), reply.OK


def _images(world: World, attempt: int) -> reply.Answers:
    expected = world.destination is S.RECEIVING_DUMP and attempt == world.attempt_there
    yield (world._replace(images=attempt), reply.OK) if expected else (world, reply.TROUBLE)


def _dump_drop(world: World, attempt: int) -> reply.Answers:
    yield closed(world) if attempt == world.attempt_there else world, reply.OK


def closed(world: World) -> World:
    return moved(world, Event.DROP_DUMP)._replace(images=0) if world.destination in ARRIVING else world


def _own(world: World, attempt: int) -> reply.Answers:
    latest = world.attempt_there
    if world.destination in TAKEN:
        yield world, reply.OK if attempt == latest else reply.TROUBLE
    elif attempt != latest or world.destination not in ARRIVING or world.images != attempt or not world.place.may_go:
        yield refusal(world, attempt), reply.REFUSED
    else:
        if world.destination is S.RECEIVING_DUMP:
            world = moved(world, Event.DUMP_RECEIVED)
            yield world, reply.LOST
        yield moved(world, Event.OWN), reply.OK


def refusal(world: World, attempt: int) -> World:
    """It is recorded before it is said, so that the same offer is never taken later."""
    if attempt >= world.attempt_there:
        world = closed(world)
    return world._replace(attempt_there=max(attempt, world.attempt_there))


def _abandon(world: World, how: int) -> reply.Answers:
    if world.given_way:
        yield world, reply.REFUSED if world.is_back else reply.OK
        return
    if world.destination is S.RESTORING:
        world = settled(world)
        yield world, reply.LOST
    if world.has_left and how == BY_FORCE:
        yield gave_way(world), reply.OK
    elif world.destination in RAN_THERE:
        yield world, reply.REFUSED  # also where somebody must choose
    elif world.destination is S.ABANDONED:
        yield world, reply.OK
    else:
        world = moved(world, Event.ABANDON)
        yield world, reply.LOST
        if world.place.may_go:
            world = put_aside(world)
            yield world, reply.LOST
            world = world._replace(place=Whose.NOBODYS)
            yield world, reply.LOST
        yield moved(world, Event.ABANDONED)._replace(images=0), reply.OK


def put_aside(world: World) -> World:
    """What a power cut has brought back: see `put_aside` in stages/import_data.py."""
    return world._replace(mark=False)


def gave_way(world: World) -> World:
    """It stays fenced, or is fenced anew, or is not there any more."""
    return moved(world, Event.FINISHED)._replace(given_way=True, had_stopped=False, fenced_there=True)


def _restore(world: World, _: int) -> reply.Answers:
    if world.destination is S.RESTORING:
        world = settled(world)
        yield world, reply.LOST
    if world.must_choose and world.stands_stopped:
        yield world, reply.REFUSED
        return
    if world.stands_fenced:
        yield from started(world)
        return
    verdict = decide("restore-dump", world.destination).verdict
    if verdict is not Verdict.GO:
        yield world, reply.OK if verdict is Verdict.ALREADY else reply.TROUBLE
        return
    if world.destination is S.DUMP_RECEIVED:
        world = moved(world, Event.OWN)
        yield world, reply.LOST
    if not world.place.may_go:
        yield world, reply.TROUBLE
        return
    world = moved(put_aside(world), Event.RESTORE)
    yield world._replace(restoring=True), reply.LOST  # it goes on by itself, see `restore_moves`
    yield moved(world, Event.RESTORE_FAILED), reply.TROUBLE
    if world.images:
        yield moved(world, Event.RESTORED)._replace(there=RUNS, fenced_there=False, images=0), reply.OK


def _running(world: World, _: int) -> reply.Answers:
    if (world.must_choose and world.stands_stopped) or world.is_back:
        yield world, reply.REFUSED
        return
    runs = world.destination in RAN_THERE and not (world.has_left or world.given_way)
    yield world, reply.OK if runs else reply.TROUBLE


def started(world: World) -> reply.Answers:
    """What is stopped there, fenced or not, is started from its disk."""
    yield world._replace(restoring=True), reply.LOST  # it goes on by itself, see `restore_moves`
    yield world, reply.TROUBLE
    yield gone_on(world), reply.OK


def gone_on(world: World) -> World:
    """The fence is taken away, and it is started from its disk."""
    return world._replace(there=RUNS, fenced_there=False, restoring=False, images=0, had_stopped=False)


def _finish(world: World, _: int) -> reply.Answers:
    if world.given_way:
        yield world, reply.OK
        return
    if world.stands_fenced and not world.must_choose:  # the source's copy has ended
        world = gone_on(world)
        yield world, reply.LOST
    world = moved(world, Event.FINISHED)
    yield world, reply.LOST
    yield world._replace(fenced_there=False), reply.OK


HANDLERS: dict[str, Callable[[World, int], reply.Answers]] = {
    "begin": _begin, "receive": _receive, "received": _received, "import": _import, "dump-begin": _dump_begin,
    "images": _images, "dump-drop": _dump_drop, "own": _own, "abandon": _abandon, "restore": _restore,
    "running": _running, "finish": _finish,
}


def settled(world: World) -> World:
    """After a restore that was killed: either it runs, or what is left is ended and fenced.

    What runs is not ended, and without its monitor stays fenced, as LXC would start one beside it. What may have run is
    not taken away, and not let go on here.
    """
    if world.there == RUNS:
        return moved(world, Event.RESTORED)._replace(fenced_there=world.fenced_there and not world.monitor)
    world = world._replace(monitor=True)
    if world.mark and world.place.may_go:
        return moved(world, Event.RESTORED)._replace(fenced_there=True)
    return moved(world, Event.RESTORE_FAILED)._replace(fenced_there=True)
