# SPDX-License-Identifier: GPL-2.0-or-later
"""How a migration stands on the other host: what that says, asked for its state, and read strictly.

Who answers may be of another version, or lie, and may keep its connection alive for ever without an answer.
"""

from __future__ import annotations

from migrator.copies import resume_rules
from migrator.record.journal import Migration
from migrator.record.states import State
from migrator.transfer.messages import AskState, MigrationState
from migrator.transfer.rpc import Connection

LIMIT = 60.0  # seconds for that answer: nothing is done for it


def ask(there: Connection, id_: str) -> MigrationState:
    """The destination's answer, for `told` and `stages.steps.same_host`.

    Raises ConnectionLost where it takes too long, and ProtocolError for a state that is not known here.
    """
    return there.call_within(LIMIT, AskState(id=id_))


def state(there: Connection, migration: Migration) -> State | None:
    """The destination's state of this migration; None when it doesn't know it, or is not the host that it went to."""
    return told(ask(there, migration.id), migration)


def told(answer: MigrationState, migration: Migration) -> State | None:
    """The same, as answered."""
    known = resume_rules.is_known(migration.ticket, known=answer.state is not None, answered=answer.ticket)
    return answer.state if known else None
