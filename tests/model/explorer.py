# SPDX-License-Identifier: GPL-2.0-or-later
"""The search through every world of `tests.model`, and the table of what it has seen (docs/model.md).

`python -m tests.model.explorer` prints that page; with `--dumps N` for another number of attempts.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
from collections.abc import Iterable

from migrator.copies.origins import Whose
from migrator.copies.resume_rules import on_destination, on_source
from migrator.record.decisions import Verdict, decide, next_stage
from migrator.record.states import ENDED, Role, State
from tests.model import (
    destination_answers,
    destination_commands,
    programs,
    reply,
    source_programs,
    source_word,
)
from tests.model.moves import moves
from tests.model.reply import OK
from tests.model.world import FROZEN, RUNS, STOPPED, Message, World, check, check_move


class Broken(AssertionError):
    """A world in which something does not hold, with the shortest way that leads there."""


@dataclasses.dataclass
class Explored:
    """Every world that can be reached, with the number of steps that it takes to get there."""

    depth: dict[World, int]
    transitions: collections.Counter[str]  # by what happens

    @property
    def idle(self) -> list[World]:
        """Where no program runs and nothing is under way any more: what an operator finds the next morning."""
        found = {world._replace(flying=frozenset()) for world in self.depth if world.idle and world.source}
        return sorted(found, key=repr)


def explore(*, deep: bool = False) -> Explored:
    """Breadth first, to the end; raises Broken, with the shortest way. Depth first it finds sooner what is broken."""
    first = World()
    before: dict[World, tuple[World, str] | None] = {first: None}
    found = Explored({first: 0}, collections.Counter())
    waiting = collections.deque([first])
    while waiting:
        world = waiting.pop() if deep else waiting.popleft()
        last = world
        for label, reached in moves(world):
            found.transitions[label] += 1
            if reached is last or reached is world:  # by another answer, or none: most of them
                continue
            last = reached
            known = reached in before
            if not known:
                before[reached] = (world, label)
                found.depth[reached] = found.depth[world] + 1
                waiting.append(reached)
            try:
                check_move(world, label, reached)
                if not known:
                    check(reached)
            except AssertionError as error:
                raise Broken(f"{error}:\n{_way(before, world)}\n  {_line(label, reached)}") from None
    return found


def _way(before: dict[World, tuple[World, str] | None], world: World) -> str:
    lines = []
    while last := before[world]:
        lines.append(f"  {_line(last[1], world)}")
        world = last[0]
    return "\n".join(reversed(lines))


def _line(label: str, world: World) -> str:
    return f"{label}: source {world.source} {world.here}, destination {world.destination} {world.there} {world.place}"


# --- the ways out ---------------------------------------------------------------------------------------------
#
# From every idle world, with a network that works and nothing that fails any more.


def by_advice(world: World) -> World:
    """Type what `migrator status` advises on the source, and when that is refused, what the answer advises."""
    assert world.source
    if world.source in ENDED:
        return told_late(world)
    if runs_again(world):
        return typed(world, "rollback")  # which the error of what is advised advises
    verb, _, place = next_stage(Role.SOURCE, world.source).partition("@")
    on_source_ = not place
    for _ in range(4):
        here, there = (world.source, world.destination) if on_source_ else (world.destination, None)
        there = None if verb == "rollback" else there  # it does not ask
        decision = decide(verb, here, there)
        if decision.verdict is Verdict.GO or (verb == "create-dump" and here is State.DUMPING):
            break
        verb, _, place = decision.next_stage.partition("@")
        on_source_ = on_source_ if not place else place == "source"
    else:
        raise Broken(f"the advice goes round in circles: {world}")
    if on_source_:
        return typed(world, verb)
    after = there_typed(world, verb)
    # A restore without images fails, and its error advises this.
    return typed(after, "rollback") if after.destination is State.OWNED else after


def runs_again(world: World) -> bool:
    """On the source, where the token is offered or away, and no word is given any more."""
    return world.source in (State.OFFERED, State.DUMPED) and not source_word.stands_still(world)


def by_resume(world: World) -> World:
    """`migrator resume` on the source: one step of it."""
    assert world.source
    if world.source in ENDED:
        return told_late(world)
    if world.source is State.DUMPING:
        world = finished(world._replace(program="heal"))
    if runs_again(world):
        return typed(world, "rollback")
    stage = on_source(world.source or State.PREPARING, world.destination, images=world.restorable)
    over = next(source_programs.begin_over(world), None) if stage in ("import-data", "restore-dump") else None
    return finished(over) if over else typed(world, stage)


def by_resume_there(world: World) -> World:
    """`migrator resume` on the destination, which then has the source do the same."""
    if world.destination is State.RESTORING:
        world = destination_answers.settled(world)
    if world.stands_fenced or world.has_left:
        world = there_typed(world, "resume")
    if world.destination:
        act = on_destination(world.destination, source_word.told(world), images=world.restorable)
        if act:
            world = there_typed(world, act)
    return world if world.source in ENDED else by_resume(world)


def told_late(world: World) -> World:
    """`rollback` or `resume` on the source, once more: it tells the destination; where it has run, `resume` there."""
    killed = world.mark and world.destination is State.RESTORING
    return there_typed(world, "resume" if world.stands_stopped or world.has_left or killed else "rollback")


def typed(world: World, stage: str) -> World:
    """A command on the source that succeeds."""
    if world.here == STOPPED and not world.fenced_here and world.source in (State.PREPARING, State.PREPARED):
        world = world._replace(here=RUNS)  # which the command asks for, as after any reboot
    dumps, programs.DUMPS = programs.DUMPS, world.attempt + 1
    try:
        started = next(source_programs.begin(world, stage), None)
    finally:
        programs.DUMPS = dumps
    if started is None:
        raise Broken(f"{stage} refuses in {world}")
    return finished(started)


def finished(world: World) -> World:
    """The program on the source, to its end."""
    while world.program:
        if world.waiting:
            if world.gone:
                world = next(source_programs.broken(world, silence=True))
                continue  # a force has waited before
            there, answer = last_answer(world, source_word.awaited(world))
            world = next(source_programs.answered(there, answer))
        else:
            world = next(source_programs.go_on(world))
    return world._replace(flying=frozenset())


def there_typed(world: World, command: str) -> World:
    return last_of(destination_commands.typed_there(world, command))[0]


def last_answer(world: World, message: Message) -> tuple[World, str]:
    return last_of(destination_answers.answers(world, message))


def last_of(answers: Iterable[tuple[World, str]]) -> tuple[World, str]:
    """How the destination answers when nothing comes between; OK where that is possible."""
    found = [pair for pair in answers if pair[1] != reply.LOST]
    return next((pair for pair in found if pair[1] == OK), found[-1])


WAYS = {"the advice of status": by_advice, "resume on the source": by_resume, "resume there": by_resume_there}


def ends(world: World, way: str) -> World:
    """Follow one of WAYS to the end; raises Broken where there is none, or where it then runs nowhere.

    Somebody else's container of that name is removed first, and a disk that is away is mounted, as the errors advise.
    """
    here = world._replace(away=False, place=Whose.NOBODYS if world.place is Whose.FOREIGN else world.place)
    for _ in range(14):
        if here.source in ENDED and not pending(here):
            break
        if here.is_back:  # it is stopped and renamed there, as back-there advises
            here = here._replace(place=Whose.NOBODYS, there=STOPPED, fenced_there=True, put_back=False)
        # gone-there, which advises to force it
        lost = (here.has_left or here.given_way) and here.source in (State.OFFERED, State.DUMPED)
        if here.must_choose and here.stands_stopped and here.source in (State.OFFERED, State.DUMPED):
            here = there_typed(here, "restore-dump")  # as stopped-there advises
        here = finished(here._replace(program="rollback forced")) if lost else WAYS[way](here)
        try:
            check(here)
        except AssertionError as error:
            raise Broken(f"{error}: {way} leads from {world} to {here}") from None
    else:
        raise Broken(f"{way} does not lead to an end: {world} stays at {here}")
    on = (here.may_run_here, here.may_run_there)
    if on != ((False, True) if here.source is State.FINISHED else (True, False)) or here.here == FROZEN:
        raise Broken(f"{way} leads from {world} to where it cannot run: {here}")
    return here


def pending(world: World) -> bool:
    """A forced rollback is behind us, the destination has come back, and does not know."""
    known = world.destination in (None, State.ABANDONED, State.FINISHED)
    return world.forced and not world.gone and not known


# --- the page -------------------------------------------------------------------------------------------------

PAGE = """\
# What the model has seen

`tests/model` is a model of both hosts together. It makes its moves with the same functions as the program
(`after` of `migrator/record/states.py`, `decide` and `step` of `migrator/record/decisions.py`, and
`migrator/copies/resume_rules.py`). `tests/model/explorer.py` explores everything that can happen, breadth first,
until there is nothing new: up to {dumps} attempts at a dump (or a stop, with --no-memory), each broken off at any
point, by a failure, a signal or a crash, and any number of rounds, reboots and commands. This page is written by
`make docs`; a test compares it with what a new search finds.

| | |
| --- | --- |
| worlds: both journals, both programs, messages, fences, images, and where the container runs | {worlds} |
| pairs of states of source and destination among them | {pairs} |
| transitions | {transitions} |
| steps from the beginning to the farthest world | {depth} |
| worlds at rest, from each of which all three ways below lead to an end | {idle} |

In each of these worlds

- at most one copy runs, and while one runs, the other cannot be started unless somebody removes its fence;
- the container runs, or can be started, only on the host that owns the token, unless somebody has intervened by hand;
- the source's copy is ended only after the destination has recorded that the container runs there, and has been asked
  again whether what has run still exists: if it was destroyed, or another container is in its place, the source's
  copy is the last one and is kept;
- the source's memory is not ended if all that is known is that the container was let run on the destination: if it
  has stopped within that same boot, somebody has to choose between that memory and what is on the destination's disk;
- a container of that name which somebody else has made on the destination, at whatever moment, stays as it is: it is
  not removed, not taken over, and not mistaken for the one that arrives;
- what may have run on the destination is not given up before somebody has destroyed it, even if its disk is not there
  and shows nothing of it, and is not removed when a power cut has brought it back;

and from each world at rest, once the network works, each of these leads to an end with exactly one copy that runs or
may be started: the command that `migrator status` names, `migrator resume` on the source, `migrator resume` on the
destination. If an error says that somebody has to choose, that choice is made first, as the error says: after
`stopped-there` by `restore-dump` on the destination, after `gone-there` by `rollback --force` on the source, after
`back-there` by stopping and renaming the container on the destination.

The model includes a forced rollback: the destination is lost, possibly in the middle of a restore, and comes back
with its journal at any moment, even while the rollback is being forced, either rebooted or as it was when it stalled.
It may then run nothing, since the source's word has expired by then, or it asks the source first. The model also
includes a destination whose journal is lost, and one that was rebooted after it had let the container run and before
it had recorded that. It leaves out what no program can prevent: a destination on which LXC runs the container, or may
start it, when it is given up for lost.

The source's word may expire at any moment, on both hosts at once: that it expires on the destination no later than
here is the business of the clocks, see [states.md](states.md#the-sources-word). Strangers interfere only before the
last of the dumps, except for somebody who removes the fence from what a restore has let run. The disk with the
destination's LXC path may be absent for a while, from *owned* on, and after the container has given way there; a disk
that is lost for good is, once this was stated there, equivalent to a container that was destroyed. LXC's monitor of
what runs there may end at any moment, and LXC then reports the container as stopped; on the source nothing depends on
the monitor.

The source's copy may be thawed by somebody, or lose its fence and be started: from then on no word is given, and the
token is taken back. If that happens while a word that was given before still holds, and the container may have run on
the destination, nothing can make up for it: this is left out too. A container that has stopped on the destination may
lose its fence as well, except after a forced rollback, which is left out in the same way. A container that has given
way there may be put back, or lose its fence, and be started, as long as the source has not been told of it, or has no
record that it was and asks again; after that it is left out too. And if the container runs on a destination that has
lost its journal, the source's copy may be ended by force.

The model includes `restore-dump --force` as well: the source is lost, with its copy standing still behind its fence,
and comes back at any moment, rebooted or as it was when it stalled; or it answers, and is believed. Left out is what
nothing can make up for: a source that is silent and had taken the token back, one whose copy runs past its fence, and
an operator who forces on both hosts at once: in the model, a rollback that is forced on the source waits until the
forced restore has no time left, although in reality it does not know about it. And the source never loses its
journal.

A power cut may undo what was done on the destination's disk, but not what was recorded: after a restore that failed
once the container may have run, right after that record, what was put aside is in its place again. The model does not
cover anything else that a power cut might bring back, such as what an abandon had removed. Nor does it cover
snapshots that somebody deletes by hand, so that nothing on disk shows any more what belongs to which migration; a
container that LXC does not know and no check finds, as none of its processes has its root in what was brought; one
that ends by itself; a journal that is an older one; or a copy on the source that is ended by force because the
container that had given way is back.

| what happens | transitions |
| --- | --- |
{rows}

That the search finds errors is itself tested: `tests/model/test_broken_rules.py` breaks one rule after the
other (the source thaws while its offer is open, the offer goes out before the fence is in place, a refusal is not
recorded, an offer does not say for which dump it is, the source waits neither for the destination's answer nor for
its own word to expire, the last check does not cover whether the word still holds or whether the source's copy still
stands still, a container in the same place is taken for ours, the source's copy is ended without checking that what
has run still exists, a stopped container counts as finished as soon as it has lost its fence, a container that has
given way is believed to have done so forever, a forced command asks nobody, what a power cut has brought back is
removed, ...) and expects two copies, or the loss of a stranger's container, of the last copy, or of the memory.
"""


def page(found: Explored) -> str:
    rows = "\n".join(f"| {label} | {count} |" for label, count in sorted(found.transitions.items()))
    pairs = len({(world.source, world.destination) for world in found.depth})
    return PAGE.format(dumps=programs.DUMPS, worlds=len(found.depth), pairs=pairs, depth=max(found.depth.values()),
                       transitions=found.transitions.total(), idle=len(found.idle), rows=rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dumps", type=int, default=programs.ALL_DUMPS,
                        help="attempts at a dump (default: %(default)s)")
    programs.DUMPS = parser.parse_args().dumps
    print(page(explore()), end="")


if __name__ == "__main__":
    main()
