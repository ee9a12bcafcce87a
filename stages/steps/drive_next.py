# SPDX-License-Identifier: GPL-2.0-or-later
"""Which stage the driver takes next, by the states of both hosts."""

from __future__ import annotations

from migrator.record.decisions import step
from migrator.record.states import State
from migrator.transfer.rpc import Connection
from stages.steps import ask_state, drive_plan, same_host
from stages.steps.drive_move import Move


def next_stage(move: Move, there: Connection) -> str:
    """The stage's name; "" if the migration has ended."""
    if move.migration is None:
        return "prepare-data"
    answer = ask_state.ask(there, move.migration.id)
    stage = step(move.migration.state, ask_state.told(answer, move.migration))
    if stage == "prepare-data":  # before anything is looked at there
        same_host.require(move.request.destination, move.migration, there, answer)
    if stage == "create-dump" and move.migration.state is State.PREPARED and drive_plan.more_rounds(move):
        return "prepare-data"
    return stage
