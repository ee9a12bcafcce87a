# SPDX-License-Identifier: GPL-2.0-or-later
"""Both hosts together, as a model that `tests.migrator.explorer` searches completely.

It moves by the very functions of `migrator.record.states` that the program moves by, and knows beside them which
records are written in which order around which acts and messages. Keep it in step with stages/*.py. What can happen at
any moment:

  - a message arrives late, from a connection that is long gone, and more than once; an answer is lost
  - the program on either host is killed between any two steps, each durable write being one
  - either host is rebooted: processes and memory are gone, images that lay in memory too (or not: they lay on disk)
  - somebody types any command on either host, or starts the container with LXC wherever no fence stands
  - the destination is lost, a rollback is forced on the source, and the destination comes back after all, at any
    moment, also in the middle of that: rebooted, or as a machine that stood still as a whole and goes on, with all that
    lay in its pipes, and with a restore under way. Its clock has gone on meanwhile: what the source had said holds no
    longer there than here. Of a virtual machine whose clock stood still with it that is not so, see docs/states.md
  - the destination is lost with its journal alone, or was installed anew, and answers that it knows of nothing; while
    the container runs there it says that, and the source's copy can be ended by force
  - a command is interrupted while it waits for an answer; the destination ends a migration by itself, whose source is
    lost for good
  - a rollback asks another host, as after a wrong -d: it has never heard of the migration, or only of an earlier round
  - somebody makes a container of that name on the destination, where none is or in the place of ours, or removes his;
    what has run there he may destroy as long as the source's copy is not being ended. Between the destination's word
    that it is there and the record that it is, nobody can keep him from that
  - the disk with the LXC path is not there on the destination for a while, as after a boot without it: what lies on it
    is not to be seen, and cannot be started, and all of it is there again at any moment
  - somebody takes the fence away from what a restore has let run; LXC's monitor ends, and what it held runs on. On the
    source no rule hangs on the monitor
  - somebody thaws what stands still on the source, or takes its fence away, so that it can be started; but not while
    the source's word holds, nor where it may have run on the destination: for that nobody can make up
  - the container has stopped there in the boot in which it was let run, so that it may never have run, or a reboot has
    stopped it; and somebody takes its fence away there, before a rollback is forced: after that nobody can make up for
    it. That there is memory to lose is told here by what is frozen on the source when the restore is killed
  - what has given way on the destination is put back there, as where it was renamed and is renamed back, or loses its
    fence, and is started, before the source has heard that it has given way, or has recorded that it did: killed, it
    asks once more. After that nobody can make up for it
  - the source is lost, standing still behind its fence, `restore-dump` is forced on the destination, and the source
    comes back after all, at any moment: rebooted, or as it stood still. Its journal is never lost. Nobody can make up
    for one that had taken the token back and is silent, nor for a rollback that is forced there at the same time: such
    a one waits here until the forced restore may let nothing run any more, see `let_run_by_force`
  - the power fails on the destination right after a failed restore was recorded, before its disk had what was done:
    what may have run and was put aside is in its place again, with the mark. Not later: what an abandon has removed
    does not come back here

It does not have: snapshots that somebody deletes by hand, so that nothing on disk tells whose what is; that no look for
what lives finds anything of it, as none of its processes has its root in what was brought; a container that ends by
itself, but for who restores it; a journal that is an older one; the end by force of what stands still on the source, as
what had given way is back.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from migrator.copies.leave import BY_HAND
from migrator.copies.origins import Whose
from migrator.copies.resume_rules import LETS_RUN, MAY_RESTORE, TAKEN_BACK, gives_back, must_ask
from migrator.record.decisions import Verdict, decide, step
from migrator.record.states import ENDED, Event, IllegalMove, Owner, Role, State, after, owner
from tests.migrator.around import disk, rebooted_there, strangers, strangers_on_the_source, unseen
from tests.migrator.programs import ARRIVING, BY_FORCE, DUMPING_PROGRAMS, GOES_ON, NUMBERED, PROGRAMS, TAKEN, inert
from tests.migrator.world import FROZEN, POWER_CUT, RAN_THERE, REBOOTED, RUNS, STOPPED, STRANGER, Message, World

__all__ = ["ARRIVING", "NUMBERED", "PROGRAMS", "TAKEN", "inert"]

S = State
# Attempts at a dump: an older one's messages can harm a newer one. The page is made with ALL_DUMPS.
ALL_DUMPS = 3
DUMPS = ALL_DUMPS if os.environ.get("MIGRATOR_TESTS") == "all" else 2

OK = "ok"
REFUSED = "refused"  # the one error that is the destination's last word: DumpRefused, AlreadyRuns, StoppedThere
TROUBLE = "trouble"  # any other error
UNKNOWN = "unknown"  # it has never heard of it: NoMigration, or an abandon that says so
LOST = "lost"  # no answer

Moves = Iterator[tuple[str, World]]


def moves(world: World) -> Moves:
    """Everything that can happen next."""
    yield from source_moves(world)
    if world.word:
        yield "the source's word is over", world._replace(word=False)
    if not world.gone:
        yield from destination_moves(world)
        for message in world.flying:
            for changed, _ in answers(world, message, leave=has_leave(world, message)):
                yield f"{message.request} arrives late", changed
    else:
        back = world._replace(gone=False)
        yield "the destination comes back", rebooted_there(back, images=True)._replace(flying=frozenset())
        yield "the destination goes on", kept(back)


# --- the source -----------------------------------------------------------------------------------------------


def source_moves(world: World) -> Moves:
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
    if world.attempt < max(DUMPS, 2):
        yield from strangers_on_the_source(world)


def stands_still(world: World) -> bool:
    """On the source, which looks before it offers the token again, or says that it may be let run there."""
    return world.here != RUNS


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
    if stage == "create-dump" and world.source is S.PREPARED and world.attempt == DUMPS:
        return
    if stage == "prepare-data" and world.source in ENDED:
        return  # another migration
    verdict = decide(stage, world.source, None if stage == "rollback" else world.destination).verdict
    if stage == "create-dump" and world.source is S.OFFERED:
        if verdict is not Verdict.ALREADY and not stands_still(world):
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
    elif stage == "restore-dump" and not stands_still(world):
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
    message = awaited(world)
    if not world.waiting:
        flying = world.flying if world.gone else world.flying | {message}
        yield kept(world._replace(waiting=True, flying=flying))
        return
    if not world.gone:
        leave = stands_still(world) or message.request not in GOES_ON
        for there, answer in answers(world, message, leave=leave):
            yield from answered(there, answer if leave or answer != OK else TROUBLE)
    if message.request == "abandon":
        for known in (False, True):
            yield from another_answers(world, known=known)
    for silence in (True, False) if world.gone else (False,):
        yield from broken(world, silence=silence)


def awaited(world: World) -> Message:
    request = PROGRAMS[world.program][world.step].removeprefix("call:")
    if world.program == "rollback forced" and request == "abandon":
        return Message(request, BY_FORCE)
    return Message(request, world.attempt if request in NUMBERED else 0)


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
    if answer == OK:
        yield done(world)
    elif answer == REFUSED and world.source is S.OFFERED and world.program in (*DUMPING_PROGRAMS, "offer again"):
        yield world._replace(program="refused", step=0, waiting=False)
    elif answer == REFUSED and world.program in ("rollback", "rollback forced"):
        yield world._replace(program="", step=0, waiting=False)  # it runs there already
    elif answer == UNKNOWN:
        yield from broken(world, silence=world.there == STOPPED and world.fenced_there)  # as is said in `lost`
    elif answer != LOST:
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


def told(world: World) -> State | None:
    """What the source answers when the destination asks for its state."""
    forcing = world.program == "rollback forced" and world.step > 0
    return S.ROLLING_BACK if forcing else world.source


def undone(world: World) -> World:
    return world._replace(program="undo", step=0, waiting=False)


# --- the destination ------------------------------------------------------------------------------------------


def moved(world: World, event: Event) -> World:
    state = after(Role.DESTINATION, world.destination, event)
    return world._replace(destination=state, mark=world.mark and state in (S.RESTORING, S.ABANDONING),
                          had_stopped=world.had_stopped and state in RAN_THERE,
                          word=world.word and state in (S.OWNED, S.RESTORING, S.RESTORED))


def kept(world: World) -> World:
    """Without the messages that can have no effect any more, whatever happens."""
    dead = [message for message in world.flying if inert(world, message)]
    return world._replace(flying=world.flying.difference(dead)) if dead else world


def has_leave(world: World, message: Message) -> bool:
    """Whether the source says, asked again by the first answer, that it still waits for this very request."""
    return world.waiting and awaited(world) == message and (stands_still(world) or message.request not in GOES_ON)


def given(world: World) -> World:
    """The source's word, once its fence stands again."""
    return world._replace(word=True, fenced_here=True, past=False)


def answers(world: World, message: Message, *, leave: bool = True) -> Iterator[tuple[World, str]]:
    """What the destination does with a request, and answers; it may be killed between two records.

    Without `leave` nothing is let run: the restore is prepared, and fails.
    """
    if world.restoring:
        yield world, TROUBLE  # a restore has the container locked
        return
    if world.forgot:
        yield world, UNKNOWN
        return
    if world.away:
        yield from unseen(world, message.request, lambda seen: answers(seen, message, leave=leave), TROUBLE)
        return
    if leave and message.request in GOES_ON:
        world = given(world) if has_leave(world, message) else world._replace(word=True)
    try:
        for changed, answer in HANDLERS[message.request](world, message.attempt):
            if not leave:
                if changed.there == RUNS != world.there:
                    continue
                changed = changed._replace(restoring=False)
            if changed.destination not in (S.OWNED, S.RESTORING, S.RESTORED):
                changed = changed._replace(word=False)
            changed = kept(changed)
            yield changed, answer
            if answer != LOST:
                yield changed, LOST
    except IllegalMove:
        yield world, TROUBLE


Answers = Iterator[tuple[World, str]]


def _begin(world: World, _: int) -> Answers:
    if not world.place.may_be_taken:
        yield world, TROUBLE  # ContainerExists
    elif world.destination is None:
        yield moved(world, Event.RECEIVE), OK
    else:
        yield world, TROUBLE if world.destination in (*ENDED, S.ABANDONING) else OK


def _receive(world: World, _: int) -> Answers:
    yield moved(world, Event.RECEIVE), OK


def _received(world: World, _: int) -> Answers:
    yield moved(world, Event.RECEIVED), OK


def _import(world: World, _: int) -> Answers:
    if decide("import-data", world.destination).verdict is not Verdict.GO:
        yield world, OK if decide("import-data", world.destination).verdict is Verdict.ALREADY else TROUBLE
        return
    world = moved(world, Event.IMPORT)
    yield world, LOST
    yield moved(world, Event.RECEIVE), TROUBLE  # damaged
    if not world.place.may_be_taken:
        yield world, TROUBLE  # ContainerExists
        return
    world = world._replace(place=Whose.OURS)
    yield world, LOST
    yield moved(world, Event.IMPORTED), OK


def _dump_begin(world: World, attempt: int) -> Answers:
    if attempt <= world.attempt_there:
        yield world, TROUBLE
        return
    if not world.place.may_go and world.destination in (S.IMPORTED, *ARRIVING):
        gone = world.place is Whose.NOBODYS  # it is sent and defined anew
        yield moved(world, Event.RECEIVE) if gone else world, TROUBLE
        return
    yield moved(world, Event.RECEIVE_DUMP)._replace(attempt_there=attempt, images=0), OK


def _images(world: World, attempt: int) -> Answers:
    expected = world.destination is S.RECEIVING_DUMP and attempt == world.attempt_there
    yield (world._replace(images=attempt), OK) if expected else (world, TROUBLE)


def _dump_drop(world: World, attempt: int) -> Answers:
    yield closed(world) if attempt == world.attempt_there else world, OK


def closed(world: World) -> World:
    return moved(world, Event.DROP_DUMP)._replace(images=0) if world.destination in ARRIVING else world


def _own(world: World, attempt: int) -> Answers:
    latest = world.attempt_there
    if world.destination in TAKEN:
        yield world, OK if attempt == latest else TROUBLE
    elif attempt != latest or world.destination not in ARRIVING or world.images != attempt or not world.place.may_go:
        yield refusal(world, attempt), REFUSED
    else:
        if world.destination is S.RECEIVING_DUMP:
            world = moved(world, Event.DUMP_RECEIVED)
            yield world, LOST
        yield moved(world, Event.OWN), OK


def refusal(world: World, attempt: int) -> World:
    """It is recorded before it is said, so that the same offer is never taken later."""
    if attempt >= world.attempt_there:
        world = closed(world)
    return world._replace(attempt_there=max(attempt, world.attempt_there))


def _abandon(world: World, how: int) -> Answers:
    if world.given_way:
        yield world, REFUSED if world.is_back else OK
        return
    if world.destination is S.RESTORING:
        world = settled(world)
        yield world, LOST
    if world.has_left and how == BY_FORCE:
        yield gave_way(world), OK
    elif world.destination in RAN_THERE:
        yield world, REFUSED  # also where somebody must choose
    elif world.destination is S.ABANDONED:
        yield world, OK
    else:
        world = moved(world, Event.ABANDON)
        yield world, LOST
        if world.place.may_go:
            world = put_aside(world)
            yield world, LOST
            world = world._replace(place=Whose.NOBODYS)
            yield world, LOST
        yield moved(world, Event.ABANDONED)._replace(images=0), OK


def put_aside(world: World) -> World:
    """What a power cut has brought back: see `put_aside` in stages/import_data.py."""
    return world._replace(mark=False)


def gave_way(world: World) -> World:
    """It stays fenced, or is fenced anew, or is not there any more."""
    return moved(world, Event.FINISHED)._replace(given_way=True, had_stopped=False, fenced_there=True)


def _restore(world: World, _: int) -> Answers:
    if world.destination is S.RESTORING:
        world = settled(world)
        yield world, LOST
    if world.must_choose and world.stands_stopped:
        yield world, REFUSED
        return
    if world.stands_fenced:
        yield from started(world)
        return
    verdict = decide("restore-dump", world.destination).verdict
    if verdict is not Verdict.GO:
        yield world, OK if verdict is Verdict.ALREADY else TROUBLE
        return
    if world.destination is S.DUMP_RECEIVED:
        world = moved(world, Event.OWN)
        yield world, LOST
    if not world.place.may_go:
        yield world, TROUBLE
        return
    world = moved(put_aside(world), Event.RESTORE)
    yield world._replace(restoring=True), LOST  # it goes on by itself, see `restore_moves`
    yield moved(world, Event.RESTORE_FAILED), TROUBLE
    if world.images:
        yield moved(world, Event.RESTORED)._replace(there=RUNS, fenced_there=False, images=0), OK


def _running(world: World, _: int) -> Answers:
    if (world.must_choose and world.stands_stopped) or world.is_back:
        yield world, REFUSED
        return
    yield world, OK if world.destination in RAN_THERE and not (world.has_left or world.given_way) else TROUBLE


def started(world: World) -> Answers:
    """What is stopped there, fenced or not, is started from its disk."""
    yield world._replace(restoring=True), LOST  # it goes on by itself, see `restore_moves`
    yield world, TROUBLE
    yield gone_on(world), OK


def gone_on(world: World) -> World:
    """The fence is taken away, and it is started from its disk."""
    return world._replace(there=RUNS, fenced_there=False, restoring=False, images=0, had_stopped=False)


def _finish(world: World, _: int) -> Answers:
    if world.given_way:
        yield world, OK
        return
    if world.stands_fenced and not world.must_choose:  # the source's copy has ended
        world = gone_on(world)
        yield world, LOST
    world = moved(world, Event.FINISHED)
    yield world, LOST
    yield world._replace(fenced_there=False), OK


HANDLERS: dict[str, Callable[[World, int], Answers]] = {
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


def destination_moves(world: World) -> Moves:
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
        yield "the destination's journal is lost", kept(world._replace(
            destination=None, attempt_there=0, images=0, word=False, mark=False, had_stopped=False, forgot=True))
    if world.there == RUNS and world.destination in (S.RESTORING, S.RESTORED) and world.monitor:
        yield "LXC's monitor there ends", world._replace(monitor=False)
    if world.there == RUNS and world.fenced_there:
        yield f"{STRANGER}takes the fence away where it runs", world._replace(fenced_there=False)
    yield from disk(world)
    if world.attempt < max(DUMPS, 2) and not (world.forgot or world.away):
        yield from strangers(world)


FORCED = "restore-dump --force"
TYPED_THERE = {"import-data": "import", "restore-dump": "restore", "resume": "restore", "rollback": "abandon",
               FORCED: "restore", "finish --force": "finish"}


def typed_there(world: World, command: str) -> Answers:
    """The same as the request; but what lets it run has the source asked first, unless its word still holds."""
    if world.away:
        request = command if command == "resume" else TYPED_THERE[command]
        yield from unseen(world, request, lambda seen: typed_there(seen, command), TROUBLE)
        return
    if command == "finish --force" and not may_finish_alone(world):
        yield world, TROUBLE
        return
    if command == "resume" and world.has_left:
        yield (gave_way(world), OK) if told(world) in TAKEN_BACK else (world, TROUBLE)
        return
    if command in ("restore-dump", "resume", FORCED) and world.destination is S.RESTORING:
        world = settled(world)
        yield world, LOST
    stands = world.stands_stopped
    if command == FORCED:
        yield from forced_there(world)
        return
    if command in ("restore-dump", "resume"):
        if stands and command == "restore-dump" and not world.must_choose:
            yield world, TROUBLE  # it advises resume
            return
        if (stands or world.destination in MAY_RESTORE) and must_ask(BY_HAND if world.word and not stands else None):
            said = told(world)
            if said in TAKEN_BACK and stands:
                yield (gave_way(world), OK) if command == "resume" else (world, TROUBLE)
                return
            if said in TAKEN_BACK:
                command = "rollback"
            elif said not in LETS_RUN or not stands_still(world):
                yield world, TROUBLE
                return
            else:
                world = given(world)
                yield world, LOST
        if stands and command == "restore-dump":  # somebody has chosen that
            yield from started(world)
            return
    yield from answers(world, Message(TYPED_THERE[command], 0))


def may_finish_alone(world: World) -> bool:
    """Whether `finish --force` there ends it; as in `stages.steps.force.finish_alone`."""
    return world.destination is S.RESTORED and not (world.stands_stopped or world.is_stopped or world.has_left)


def forced_there(world: World) -> Answers:
    """What `restore-dump --force` does there, see `stages.steps.force.let_run`: the source answers, or is lost."""
    yield world, TROUBLE  # also where it answers that it does not run it
    if not (world.stands_stopped or world.is_stopped or world.destination in MAY_RESTORE):
        return
    if told(world) in TAKEN_BACK:
        yield from answers(world, Message("abandon", 0))
    elif world.source in LETS_RUN and stands_still(world) and world.fenced_here:
        yield from let_run_by_force(world)


def let_run_by_force(world: World) -> Answers:
    """The source is silent, and may go on where it was, or come back rebooted, at any moment.

    Until when it may be let run is like a word of the source's, but that nobody has given it. So a rollback that is
    forced there meanwhile waits for it here, which in truth it cannot: who forces on both hosts is left out.
    """
    world = world._replace(word=True, past=False)
    yield from started(world) if world.stands_stopped or world.is_stopped else answers(world, Message("restore", 0))


def restore_moves(world: World) -> Moves:
    label = "restore-dump"
    if world.destination is S.RESTORED and world.there == STOPPED:
        yield label, world._replace(restoring=False)  # too late, or it does not start
        if in_time(world):
            yield label, gone_on(world)
    elif world.destination is S.RESTORED:
        yield label, world._replace(restoring=False, fenced_there=False, images=0)
    elif world.there == RUNS:
        yield label, kept(moved(world, Event.RESTORED))
    elif world.mark and in_time(world):
        yield label, world._replace(there=RUNS)
    elif world.images and not world.mark:
        yield label, world._replace(mark=True)
    if world.destination is S.RESTORING:  # the attempt fails: what it has started is ended, then that is recorded
        failed = moved(world, Event.RESTORE_FAILED)._replace(restoring=False, there=STOPPED, monitor=True,
                                                             fenced_there=True)
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
