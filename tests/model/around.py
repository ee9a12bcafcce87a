# SPDX-License-Identifier: GPL-2.0-or-later
"""What befalls a container in `tests.model`, and no program of ours does: strangers, a reboot, and a disk that
is not there for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from migrator.copies.origins import Whose
from migrator.record.states import State
from tests.model.programs import PROGRAMS
from tests.model.world import FROZEN, RAN_THERE, RUNS, STOPPED, STRANGER, World

S = State
# What is not done before the disk with the LXC path is to be seen there, see `migrator.record.lxc_disk`.
NEEDS_THE_DISK = {
    S.OWNED: {"restore", "resume"},
    S.RESTORING: {"restore", "resume", "abandon"},
    S.RESTORED: {"resume", "abandon", "running", "finish"},
    S.FINISHED: {"abandon", "running"},  # where it has given way
}


def strangers(world: World) -> Iterator[tuple[str, World]]:
    """What somebody does who has nothing to do with the migration, without asking anybody."""
    if world.place is Whose.FOREIGN:
        yield f"{STRANGER}removes his container", world._replace(place=Whose.NOBODYS)
    elif world.place is Whose.NOBODYS:
        yield f"{STRANGER}makes a container of that name", world._replace(place=Whose.FOREIGN)
    elif world.destination not in RAN_THERE and world.there == STOPPED and not world.restoring:
        mark = world.mark and world.destination is S.RESTORING  # nothing of it is left that could be put aside
        yield f"{STRANGER}destroys what has arrived", world._replace(place=Whose.NOBODYS, fenced_there=True, mark=mark)
    elif world.destination is S.RESTORED and world.source in (S.OFFERED, S.DUMPED) and not world.restoring \
            and not (world.program in ("finish", "finish offered") and world.step):
        yield f"{STRANGER}destroys what has run", world._replace(place=Whose.NOBODYS, there=STOPPED, monitor=True,
                                                                 fenced_there=True, had_stopped=False)
    if world.stands_fenced and world.source in (S.OFFERED, S.DUMPED) and not (world.forced or world.restoring):
        yield f"{STRANGER}takes the fence away where it has stopped", world._replace(fenced_there=False)
    if world.given_way and world.place is not Whose.FOREIGN and not world.put_back and may_be_asked_again(world):
        yield f"{STRANGER}puts back what has given way", world._replace(
            place=Whose.OURS, fenced_there=False, put_back=True)


def may_be_asked_again(world: World) -> bool:
    """Whether the source has not yet heard that it has given way: for what is put back after that nobody can make up.

    Or has forgotten that it did, killed before it could record it.
    """
    heard = "call:abandon" in PROGRAMS.get(world.program, ())[:world.step]
    return world.source in (S.OFFERED, S.DUMPED) and not (heard or world.forced)


def strangers_on_the_source(world: World) -> Iterator[tuple[str, World]]:
    """What somebody does to a copy that is to stand still, where our programs can still make up for it."""
    if world.source in (S.OFFERED, S.DUMPED) and never_ran_there(world):
        if world.here == FROZEN:
            yield f"{STRANGER}thaws it on the source", world._replace(here=RUNS, past=True)
        if world.fenced_here:
            yield f"{STRANGER}takes the fence away on the source", world._replace(fenced_here=False, past=True)


def never_ran_there(world: World) -> bool:
    """Nor may it at this moment."""
    return not (world.word or world.restoring or world.mark) and world.fenced_there and world.there == STOPPED \
        and world.destination not in RAN_THERE


def rebooted_there(world: World, *, images: bool) -> World:
    images_left = world.images if images else 0
    return world._replace(restoring=False, there=STOPPED, monitor=True, images=images_left, word=False,
                          had_stopped=False)


def disk(world: World) -> Iterator[tuple[str, World]]:
    """It can be away as long as nothing is open on it, and come back at any moment."""
    if world.away:
        yield "the disk with the LXC path is there again", world._replace(away=False)
    elif world.destination in NEEDS_THE_DISK and world.there == STOPPED and not (world.restoring or world.forgot) \
            and (world.destination is not S.FINISHED or world.given_way):
        yield "the disk with the LXC path is not there", world._replace(away=True)


def says_so(world: World, request: str) -> bool:
    """Whether that fails where the disk is away, with nothing recorded."""
    return request in NEEDS_THE_DISK.get(world.destination or S.ABANDONED, ()) or (
        request == "restore" and world.must_choose)


def unseen(world: World, request: str, does: Callable[[World], Iterator[tuple[World, str]]],
           trouble: str) -> Iterator[tuple[World, str]]:
    """What a request does where the disk is away: all is as if nothing of it were there, and nothing on it changes."""
    if says_so(world, request):
        yield world, trouble
        return
    for changed, answer in does(world._replace(away=False, place=Whose.NOBODYS, images=0, mark=False)):
        mark = world.mark and changed.destination in (S.OWNED, S.RESTORING, S.ABANDONING)
        if changed.destination is S.ABANDONED:  # what is on it is still to be removed
            changed = changed._replace(destination=S.ABANDONING)
        yield changed._replace(away=True, place=world.place, images=world.images, mark=mark, there=world.there,
                               fenced_there=world.fenced_there, restoring=False), answer
