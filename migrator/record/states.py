# SPDX-License-Identifier: GPL-2.0-or-later
"""The two state machines of a migration, one on each host, as data; no I/O.

`docs/states.md` explains them. The program changes state only through `after`; a stage asks `decide` whether it may
run.
"""

from __future__ import annotations

import enum


class Role(enum.StrEnum):
    SOURCE = "source"
    DESTINATION = "destination"


class Owner(enum.StrEnum):
    """Whose host may let the container run."""

    SOURCE = "source"
    DESTINATION = "destination"
    UNKNOWN = "unknown"  # the source has offered the token and does not know whether it was taken


class State(enum.StrEnum):
    # source
    PREPARING = "preparing"
    PREPARED = "prepared"
    DUMPING = "dumping"
    OFFERED = "offered"
    DUMPED = "dumped"
    FINISHING = "finishing"
    ROLLING_BACK = "rolling-back"
    ROLLED_BACK = "rolled-back"
    # destination
    RECEIVING = "receiving"
    RECEIVED = "received"
    IMPORTING = "importing"
    IMPORTED = "imported"
    RECEIVING_DUMP = "receiving-dump"
    DUMP_RECEIVED = "dump-received"
    OWNED = "owned"
    RESTORING = "restoring"
    RESTORED = "restored"
    ABANDONING = "abandoning"
    ABANDONED = "abandoned"
    # both
    FINISHED = "finished"


class Event(enum.StrEnum):
    SEND = "send"  # prepare-data begins a round
    SENT = "sent"  # the destination has all of it on disk
    FREEZE = "freeze"  # about to freeze the container
    THAW = "thaw"  # create-dump failed before the offer; the container runs again
    OFFER = "offer"  # about to hand the token over
    TAKEN = "taken"  # the destination has recorded that it owns the token
    REFUSED = "refused"  # the destination has answered that it does not take it, or was never asked
    FINISH = "finish"
    FINISHED = "finished"
    ROLL_BACK = "roll-back"
    ROLLED_BACK = "rolled-back"
    RECEIVE = "receive"
    RECEIVED = "received"
    IMPORT = "import"
    IMPORTED = "imported"
    RECEIVE_DUMP = "receive-dump"
    DROP_DUMP = "drop-dump"  # an incomplete dump was removed
    DUMP_RECEIVED = "dump-received"
    OWN = "own"
    RESTORE = "restore"
    RESTORE_FAILED = "restore-failed"
    RESTORED = "restored"
    ABANDON = "abandon"
    ABANDONED = "abandoned"


S, E = State, Event

SOURCE: dict[tuple[State | None, Event], State] = {
    (None, E.SEND): S.PREPARING,
    (S.PREPARING, E.SEND): S.PREPARING,
    (S.PREPARING, E.SENT): S.PREPARED,
    (S.PREPARED, E.SEND): S.PREPARING,
    (S.PREPARED, E.FREEZE): S.DUMPING,
    (S.DUMPING, E.THAW): S.PREPARED,
    (S.DUMPING, E.OFFER): S.OFFERED,
    (S.OFFERED, E.TAKEN): S.DUMPED,
    (S.OFFERED, E.REFUSED): S.DUMPING,
    (S.DUMPED, E.FINISH): S.FINISHING,
    (S.FINISHING, E.FINISH): S.FINISHING,
    (S.FINISHING, E.FINISHED): S.FINISHED,
    **{
        (state, E.ROLL_BACK): S.ROLLING_BACK
        for state in (S.PREPARING, S.PREPARED, S.DUMPING, S.OFFERED, S.DUMPED, S.ROLLING_BACK)
    },
    (S.ROLLING_BACK, E.ROLLED_BACK): S.ROLLED_BACK,
}

DESTINATION: dict[tuple[State | None, Event], State] = {
    (None, E.RECEIVE): S.RECEIVING,
    (S.RECEIVING, E.RECEIVE): S.RECEIVING,
    (S.RECEIVING, E.RECEIVED): S.RECEIVED,
    (S.RECEIVED, E.RECEIVE): S.RECEIVING,
    (S.RECEIVED, E.IMPORT): S.IMPORTING,
    (S.IMPORTING, E.IMPORT): S.IMPORTING,
    (S.IMPORTING, E.RECEIVE): S.RECEIVING,  # what was received turned out to be damaged and is sent again
    (S.IMPORTING, E.IMPORTED): S.IMPORTED,
    (S.IMPORTED, E.RECEIVE): S.RECEIVING,
    (S.IMPORTED, E.RECEIVE_DUMP): S.RECEIVING_DUMP,
    (S.RECEIVING_DUMP, E.RECEIVE_DUMP): S.RECEIVING_DUMP,
    (S.RECEIVING_DUMP, E.RECEIVE): S.RECEIVING,  # the dump never came; another round of data does
    (S.RECEIVING_DUMP, E.DROP_DUMP): S.IMPORTED,
    (S.RECEIVING_DUMP, E.DUMP_RECEIVED): S.DUMP_RECEIVED,
    (S.DUMP_RECEIVED, E.RECEIVE): S.RECEIVING,
    (S.DUMP_RECEIVED, E.DROP_DUMP): S.IMPORTED,
    (S.DUMP_RECEIVED, E.RECEIVE_DUMP): S.RECEIVING_DUMP,
    (S.DUMP_RECEIVED, E.OWN): S.OWNED,
    (S.OWNED, E.OWN): S.OWNED,
    (S.OWNED, E.RESTORE): S.RESTORING,
    (S.RESTORING, E.RESTORE_FAILED): S.OWNED,
    (S.RESTORING, E.RESTORED): S.RESTORED,
    (S.RESTORED, E.FINISHED): S.FINISHED,
    (S.FINISHED, E.FINISHED): S.FINISHED,
    **{
        (state, E.ABANDON): S.ABANDONING
        for state in (
            None, S.RECEIVING, S.RECEIVED, S.IMPORTING, S.IMPORTED, S.RECEIVING_DUMP, S.DUMP_RECEIVED, S.OWNED,
            S.ABANDONING,
        )
    },
    (S.ABANDONING, E.ABANDONED): S.ABANDONED,
}

TABLES = {Role.SOURCE: SOURCE, Role.DESTINATION: DESTINATION}

# After these nothing more happens to a migration.
ENDED = {S.FINISHED, S.ROLLED_BACK, S.ABANDONED}

# States of the source in which the container is, or may be, frozen.
FROZEN = {S.DUMPING, S.OFFERED, S.DUMPED, S.FINISHING, S.ROLLING_BACK}

_OWNER = {
    S.OFFERED: Owner.UNKNOWN,
    S.DUMPED: Owner.DESTINATION,
    S.FINISHING: Owner.DESTINATION,
    S.OWNED: Owner.DESTINATION,
    S.RESTORING: Owner.DESTINATION,
    S.RESTORED: Owner.DESTINATION,
    S.FINISHED: Owner.DESTINATION,
}


class IllegalMove(AssertionError):
    """The program tried a move that the table does not have: an error of ours, never of the user."""


def after(role: Role, state: State | None, event: Event) -> State:
    """The state that `event` leads to; raises IllegalMove if the table has none."""
    try:
        return TABLES[role][(state, event)]
    except KeyError:
        raise IllegalMove(f"{role}: {event} in state {state}") from None


def owner(state: State) -> Owner:
    """Who owns the token as far as a host in `state` knows.

    A source rolls back only with the destination's word or before it has offered the token; when a destination records
    that it abandons, the token has at that moment gone back.
    """
    return _OWNER.get(state, Owner.SOURCE)
