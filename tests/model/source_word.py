# SPDX-License-Identifier: GPL-2.0-or-later
"""What the source says when it is asked, and whether it still stands by what it has asked for."""

from __future__ import annotations

from migrator.record.states import State
from tests.model.programs import BY_FORCE, GOES_ON, NUMBERED, PROGRAMS
from tests.model.world import RUNS, Message, World

S = State


def stands_still(world: World) -> bool:
    """On the source, which looks before it offers the token again, or says that it may be let run there."""
    return world.here != RUNS


def awaited(world: World) -> Message:
    request = PROGRAMS[world.program][world.step].removeprefix("call:")
    if world.program == "rollback forced" and request == "abandon":
        return Message(request, BY_FORCE)
    return Message(request, world.attempt if request in NUMBERED else 0)


def told(world: World) -> State | None:
    """What the source answers when the destination asks for its state."""
    forcing = world.program == "rollback forced" and world.step > 0
    return S.ROLLING_BACK if forcing else world.source


def has_leave(world: World, message: Message) -> bool:
    """Whether the source says, asked again by the first answer, that it still waits for this very request."""
    return world.waiting and awaited(world) == message and (stands_still(world) or message.request not in GOES_ON)


def given(world: World) -> World:
    """The source's word, once its fence stands again."""
    return world._replace(word=True, fenced_here=True, past=False)
