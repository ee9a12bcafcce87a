# SPDX-License-Identifier: GPL-2.0-or-later
"""Each stage as the driver takes it: the stage's own function, called over the one connection."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

from migrator.base.figures import duration, size
from migrator.copies import leave, standing
from migrator.errors.memory import DowntimeExceeded
from migrator.record import next_commands
from migrator.record.states import State
from migrator.transfer.messages import Import, Restore
from migrator.transfer.rpc import Connection
from stages.steps import end_copy, freeze_and_offer, give_back, offer, send_disk
from stages.steps.drive_move import Move
from stages.steps.reconnect import Link, say


def take(stage: str, move: Move, there: Connection, link: Link) -> None:
    """Take the stage of that name, and enter what it has done; the dump may make a new connection by `link`."""
    stages: dict[str, Callable[[], None]] = {
        "prepare-data": lambda: prepare_data(move, there),
        "import-data": lambda: import_data(move, there),
        "create-dump": lambda: create_dump(move, there, link),
        "restore-dump": lambda: restore_dump(move, there),
        "finish": lambda: finish(move, there),
        "rollback": lambda: roll_back(move, there),
    }
    stages[stage]()


def prepare_data(move: Move, there: Connection) -> None:
    disk_bytes = move.plan.disk_bytes if move.plan else 0
    done = send_disk.carry_out(move.request, move.journal, move.migration, move.container, there, disk_bytes,
                               bwlimit=move.options.bwlimit, move=move.options)
    move.migration = move.recorded()
    if move.plan:
        move.plan = dataclasses.replace(move.plan, rounds=move.rounds())
    say("round", f"Round {done.data['round']}: {size(done.data['bytes'])} in {duration(done.data['seconds'])}.",
        **{key: done.data[key] for key in ("round", "full", "bytes", "wire_bytes", "resumed_bytes", "seconds")})


def import_data(move: Move, there: Connection) -> None:
    there.call(Import(id=move.started.id))


def create_dump(move: Move, there: Connection, link: Link) -> None:
    if move.plan and move.started.state is State.PREPARED:
        say("freeze" if move.started.memory else "stop", move.plan.prediction, **move.plan.to_json())
    done = freeze_and_offer.carry_out(move.request, move.options, move.started, move.container, there, link=link)
    move.dumped = done.data
    _runs_there(move, done.data.get("running_for"))


def restore_dump(move: Move, there: Connection) -> None:
    """The restore gets what is left of the time that the container may be frozen."""
    migration = move.started
    offer.settle(migration, State.OWNED)
    left = move.frozen_left()
    if left is None or left <= 0:
        raise DowntimeExceeded(name=migration.name, seconds=f"{move.options.max_downtime:g}")
    standing.require(migration, "restore-dump", next_commands.anew(migration))
    migration.note("leave", leave=leave.given(migration.handover.leave, left))
    done = there.call_and_go(Restore(id=migration.id, limit=left), **offer.limits(left),
                             within=lambda: offer.word(migration))
    _runs_there(move, done.running_for)


def _runs_there(move: Move, seconds: object) -> None:
    """It has been running there for that many seconds; None if it is not running yet."""
    if isinstance(seconds, int | float):
        still = time.monotonic() - seconds - move.started.still_since
        # Negative if it was stopped before this host was rebooted.
        move.still_seconds = still if still >= 0 else None


def finish(move: Move, there: Connection) -> None:
    move.stopped_there = end_copy.carry_out(move.started, there).data["stopped_there"]


def roll_back(move: Move, there: Connection) -> None:
    migration = move.started
    move.ended = give_back.roll_back(migration, lambda: give_back.tell(migration, there))
