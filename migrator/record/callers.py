# SPDX-License-Identifier: GPL-2.0-or-later
"""How much the journal holds on behalf of one caller (`grant.Grant.caller`)."""

from __future__ import annotations

from migrator.record import states
from migrator.record.journal import Journal


def count(journal: Journal, caller: str) -> tuple[int, int]:
    """The number of its migrations, including those that never began, and how many of them have not ended."""
    ended = sorted(states.ENDED)
    ((known, unfinished),) = journal.rows(
        f"SELECT count(*), count(*) FILTER (WHERE state NOT IN ({', '.join('?' * len(ended))}))"  # noqa: S608
        " FROM migrations WHERE json_extract(detail, '$.caller') = ?", *ended, caller)
    return known, unfinished


def told(journal: Journal, caller: str) -> int:
    """The size in bytes of the records of all its migrations and of their events."""
    of_events = "SELECT total(length(detail)) FROM events WHERE events.id = each.id AND events.role = each.role"
    ((found,),) = journal.rows(
        f"SELECT total(length(detail) + ({of_events})) FROM migrations AS each"  # noqa: S608 -- all of it is above
        " WHERE json_extract(detail, '$.caller') = ?", caller)
    return int(found)
