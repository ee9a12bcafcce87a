# SPDX-License-Identifier: GPL-2.0-or-later
"""What the driver says of a move that has come to its end."""

from __future__ import annotations

import dataclasses
import time

from migrator.base.figures import duration
from migrator.base.result import Result
from migrator.record import next_commands
from migrator.record.journal import Migration
from migrator.transfer import plan
from stages.steps import moved_copy
from stages.steps.cleaner import Cleaner
from stages.steps.drive_move import Move


def result(move: Move) -> Result:
    """Where it is now, how long that has taken, and how long it stood still; removes the copy here if that was asked.
    """
    migration = move.started
    removed = undefine(migration) if move.options.undefine_source else []
    predicted = move.plan.still_seconds if move.plan else None
    word = "frozen" if migration.memory else "stopped"
    seconds = time.monotonic() - move.begun
    host = migration.begun.destination_host
    text = f"{migration.name} has moved to {next_commands.moved_to(migration)} in {duration(seconds)}."
    if move.still_seconds is not None:
        text += f" {plan.compared(predicted, move.still_seconds, move.dumped.get('stop_seconds'))}"
    gone = not move.container.config_file.is_file()
    kept = "" if gone else f" The stopped copy is kept here until: {next_commands.command('cleanup', migration)}"
    return Result({
        "migration": migration.id, "name": migration.name, "stage": move.command, "already": False,
        "destination": host, "new_name": migration.other_name,
        "rounds": [dataclasses.asdict(each) for each in move.rounds()],
        f"{word}_seconds": None if move.still_seconds is None else round(move.still_seconds, 3),
        f"predicted_{word}_seconds": None if predicted is None else round(predicted, 3),
        **{key: move.dumped.get(key) for key in ("increment", "memory", "send_seconds",
                                                 "dump_seconds" if migration.memory else "stop_seconds")},
        "seconds": round(seconds, 3), "removed": removed, "stopped_there": move.stopped_there,
    }, text + kept)


def undefine(migration: Migration) -> list[str]:
    """Remove the copy that has moved; returns the paths."""
    cleaner = Cleaner(dry_run=False)
    moved_copy.clean_moved(cleaner, migration)
    return cleaner.removed
