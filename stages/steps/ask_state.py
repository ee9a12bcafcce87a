# SPDX-License-Identifier: GPL-2.0-or-later
"""How a migration stands on the other host: what that says, asked for its state, and read strictly.

Who answers may be of another version, or lie, and may keep its connection alive for ever without an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from migrator.copies import resume_rules
from migrator.errors.connection import ProtocolError
from migrator.record.journal import Migration
from migrator.record.states import State
from migrator.transfer.rpc import Connection

LIMIT = 60.0  # seconds for that answer: nothing is done for it


def ask(there: Connection, id_: str) -> dict[str, Any]:
    """The destination's answer, for `told` and `stages.steps.same_host`.

    Raises ConnectionLost where it takes too long.
    """
    return there.call_within(LIMIT, "state", id=id_)


def state(there: Connection, migration: Migration) -> State | None:
    """The destination's state of this migration; None when it doesn't know it, or is not the host that it went to."""
    return told(ask(there, migration.id), migration)


def told(answer: Mapping[str, Any], migration: Migration) -> State | None:
    """The same, as answered."""
    found = read(answer)
    known = resume_rules.is_known(migration.ticket, known=found is not None, answered=str(answer.get("ticket", "")))
    return found if known else None


def read(answer: Mapping[str, Any]) -> State | None:
    """The state in an answer, None where the migration is not known there; raises ProtocolError."""
    if "state" not in answer:
        raise ProtocolError(reason="its answer has no state")
    try:
        return None if answer["state"] is None else State(answer["state"])
    except ValueError:
        raise ProtocolError(reason=f"its answer has a state that is unknown here, {answer['state']!a:.60}") from None
