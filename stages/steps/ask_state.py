# SPDX-License-Identifier: GPL-2.0-or-later
"""How a migration stands on the other host: asks for its state and reads the answer strictly.

The host that answers may run another version, or lie, or keep the connection alive for ever without answering.
"""

from __future__ import annotations

from migrator.copies import resume_rules
from migrator.record.journal import Migration
from migrator.record.states import State
from migrator.transfer.messages import AskState, MigrationState
from migrator.transfer.rpc import Connection

LIMIT = 60.0  # seconds for that answer, which takes no work


def ask(there: Connection, id_: str) -> MigrationState:
    """The destination's answer, for `told` and `stages.steps.same_host`.

    Raises ConnectionLost if it takes too long, and ProtocolError for a state that this version does not know.
    """
    return there.call_within(LIMIT, AskState(id=id_))


def state(there: Connection, migration: Migration) -> State | None:
    """The destination's state of this migration; None if it does not know it, or is not the host that it went to."""
    return told(ask(there, migration.id), migration)


def told(answer: MigrationState, migration: Migration) -> State | None:
    """As `state`, from an answer."""
    known = resume_rules.is_known(migration.ticket, known=answer.state is not None, answered=answer.ticket)
    return answer.state if known else None
