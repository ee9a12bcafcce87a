# SPDX-License-Identifier: GPL-2.0-or-later
"""What befalls the destination's container in `tests.migrator.model`, and what no program of ours does: strangers, and
a disk that is not there for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from migrator.identity import Whose
from migrator.states import State
from tests.migrator.world import RAN_THERE, STOPPED, STRANGER, World

S = State
# What is not done before the disk with the LXC path is to be seen there, see `migrator.lxc_disk`.
NEEDS_THE_DISK = {
    S.OWNED: {"restore", "resume"},
    S.RESTORING: {"restore", "resume", "abandon"},
    S.RESTORED: {"resume", "abandon", "running", "finish"},
}


def strangers(world: World) -> Iterator[tuple[str, World]]:
    """What somebody does who has nothing to do with the migration, without asking anybody."""
    if world.place is Whose.FOREIGN:
        yield f"{STRANGER}removes his container", world._replace(place=Whose.NOBODYS)
    elif world.place is Whose.NOBODYS:
        yield f"{STRANGER}makes a container of that name", world._replace(place=Whose.FOREIGN)
    elif world.destination not in RAN_THERE and world.there == STOPPED and not world.restoring:
        yield f"{STRANGER}destroys what has arrived", world._replace(place=Whose.NOBODYS, fenced_there=True)
    elif world.destination is S.RESTORED and world.source in (S.OFFERED, S.DUMPED) and not world.restoring \
            and not (world.program in ("finish", "finish offered") and world.step):
        yield f"{STRANGER}destroys what has run", world._replace(place=Whose.NOBODYS, there=STOPPED, monitor=True,
                                                                 fenced_there=True)


def disk(world: World) -> Iterator[tuple[str, World]]:
    """It can be away as long as nothing is open on it, and come back at any moment."""
    if world.away:
        yield "the disk with the LXC path is there again", world._replace(away=False)
    elif world.destination in NEEDS_THE_DISK and world.there == STOPPED and not (world.restoring or world.forgot):
        yield "the disk with the LXC path is not there", world._replace(away=True)


def says_so(world: World, request: str) -> bool:
    """Whether that fails where the disk is away, with nothing recorded."""
    return request in NEEDS_THE_DISK.get(world.destination or S.ABANDONED, ())


def unseen(world: World, request: str, does: Callable[[World], Iterator[tuple[World, str]]],
           trouble: str) -> Iterator[tuple[World, str]]:
    """What a request does where the disk is away: all is as if nothing of it were there, and nothing on it changes."""
    if says_so(world, request):
        yield world, trouble
        return
    for changed, answer in does(world._replace(away=False, place=Whose.NOBODYS, images=0, mark=False)):
        mark = world.mark and changed.destination is S.RESTORING
        if changed.destination is S.ABANDONED:  # what is on it is still to be removed
            changed = changed._replace(destination=S.ABANDONING)
        yield changed._replace(away=True, place=world.place, images=world.images, mark=mark, there=world.there,
                               fenced_there=world.fenced_there, restoring=False), answer
