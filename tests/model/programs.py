# SPDX-License-Identifier: GPL-2.0-or-later
"""What the programs on the source do in `tests.model`, and which of their messages can still do anything."""

from __future__ import annotations

from migrator.record.states import State
from tests.effort import tries
from tests.model.world import RAN_THERE, Message, World

S = State
# Attempts at a dump: an older one's messages can harm a newer one. The page is made with ALL_DUMPS.
ALL_DUMPS = 3
DUMPS = tries(2, ALL_DUMPS)

# What the programs on the source do. A word alone is the record of that event; `call:` asks the destination and waits
# for the answer; `act:` does something to the container.
PROGRAMS: dict[str, tuple[str, ...]] = {
    "prepare-data": ("send", "call:begin", "call:receive", "call:received", "sent"),
    "create-dump": ("number", "call:dump-begin", "freeze", "act:freeze", "call:images", "act:fence", "offer",
                    "call:own", "taken"),
    "create-dump --no-memory": ("number", "call:dump-begin", "freeze", "act:fence", "act:stop", "call:images",
                                "act:fence", "offer", "call:own", "taken"),
    "undo": ("act:unfence", "act:thaw", "thaw", "call:dump-drop"),
    "offer again": ("call:own", "taken"),
    "learn": ("taken",),
    "refused": ("refused", "act:unfence", "act:thaw", "thaw", "call:dump-drop"),
    "heal": ("act:unfence", "act:thaw", "thaw"),
    "rollback": ("call:abandon", "roll-back", "act:unfence", "act:thaw", "rolled-back"),
    "rollback alone": ("roll-back", "act:unfence", "act:thaw", "rolled-back"),
    "rollback forced": ("forcing", "call:abandon", "roll-back", "act:unfence", "act:thaw", "rolled-back"),
    "import over": ("call:import",),
    "restore over": ("call:restore",),
    "restore offered": ("taken", "call:restore"),
    "finish forced": ("finish", "act:fence", "act:kill", "finished"),
    "finish forced offered": ("taken", "finish", "act:fence", "act:kill", "finished"),
    "finish": ("call:running", "finish", "act:fence", "act:kill", "call:finish", "finished"),
    "finish offered": ("call:running", "taken", "finish", "act:fence", "act:kill", "call:finish", "finished"),
}
DUMPING_PROGRAMS = ("create-dump", "create-dump --no-memory")

GOES_ON = {"own", "restore"}  # their answer is followed by the source's word that it may be let run, and for how long
BY_FORCE = 1  # in an abandon, instead of an attempt: it gives way where it has run, and is not there any more
NUMBERED = {"dump-begin", "images", "own", "dump-drop"}
ARRIVING = {S.RECEIVING_DUMP, S.DUMP_RECEIVED}
TAKEN = {S.OWNED, S.RESTORING, S.RESTORED, S.FINISHED}
PAST = TAKEN | {S.ABANDONING, S.ABANDONED}


def inert(world: World, message: Message) -> bool:
    state = world.destination
    if world.forgot:
        return True
    match message.request:
        case "running":
            return True
        case "abandon":
            return state in (S.ABANDONED, S.FINISHED) or (state is S.RESTORED and message.attempt != BY_FORCE)
        case "restore":
            return state in (S.ABANDONING, S.ABANDONED, *RAN_THERE)
        case "finish":
            return state is S.FINISHED and not world.fenced_there
        case "begin":
            return state is not None
        case "dump-begin":
            return state in PAST or message.attempt <= world.attempt_there
        case "images" | "own" | "dump-drop":
            old = message.attempt < world.attempt_there
            return state in PAST or old or (message.attempt == world.attempt_there and state not in ARRIVING)
    return state in PAST


def kept(world: World) -> World:
    """Without the messages that can have no effect any more, whatever happens."""
    dead = [message for message in world.flying if inert(world, message)]
    return world._replace(flying=world.flying.difference(dead)) if dead else world
