# SPDX-License-Identifier: GPL-2.0-or-later
"""The driver's plan: the preflight, what follows from it, and whether one more round is worth it."""

from __future__ import annotations

from migrator.transfer import bandwidth, plan
from migrator.transfer.plan import Plan
from migrator.transfer.rpc import Connection
from stages.steps import examine, send_disk
from stages.steps.drive_move import Move
from stages.steps.reconnect import say


def make(move: Move, there: Connection) -> Plan:
    """The preflight, and the plan that follows from it."""
    container, migration, options = move.container, move.migration, move.options
    examine.require_running(container)
    bridges = migration.begun.bridges if migration else None
    memory = send_disk.with_memory(move.request, migration)
    looked = examine.before_stage(move.request, options.ignore, container, there, full=True, bridges=bridges,
                                  memory=memory, known_copy=migration is not None)
    found = Plan(container.name, there.peer_host, looked.disk_bytes, looked.container.memory if memory else None,
                 options.max_rounds, options.max_downtime, move.rounds(), options.stop_timeout,
                 bandwidth.measure(there))
    say("plan", found.text, **found.to_json())
    return found


def more_rounds(move: Move) -> bool:
    """Whether the disk has changed so much that another round makes the stand-still shorter; says so if not."""
    rule, why = plan.stop(move.rounds(), move.options.max_rounds)
    if rule:
        say("rounds", f"No more rounds: {why}.", rule=rule, rounds=len(move.rounds()))
    return not rule
