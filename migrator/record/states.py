# SPDX-License-Identifier: GPL-2.0-or-later
"""The two state machines of a migration, one on each host, as data and without I/O.

`docs/states.md` explains them. The program moves only through `after`; a stage asks `decide` whether it may run.
"""

from __future__ import annotations

import dataclasses
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
    DROP_DUMP = "drop-dump"  # a dump that broke off was removed
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
    (S.IMPORTING, E.RECEIVE): S.RECEIVING,  # what was received turned out to be damaged: sent again
    (S.IMPORTING, E.IMPORTED): S.IMPORTED,
    (S.IMPORTED, E.RECEIVE): S.RECEIVING,
    (S.IMPORTED, E.RECEIVE_DUMP): S.RECEIVING_DUMP,
    (S.RECEIVING_DUMP, E.RECEIVE_DUMP): S.RECEIVING_DUMP,
    (S.RECEIVING_DUMP, E.RECEIVE): S.RECEIVING,  # the dump never came, another round of data does
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
    """The state that `event` leads to; raises IllegalMove where the table has none."""
    try:
        return TABLES[role][(state, event)]
    except KeyError:
        raise IllegalMove(f"{role}: {event} in state {state}") from None


def owner(state: State) -> Owner:
    """Who owns the token as far as a host in `state` knows.

    A source rolls back only with the destination's word, or before it has offered the token; on a destination that
    abandons, the token has gone back the moment that is recorded.
    """
    return _OWNER.get(state, Owner.SOURCE)


class Verdict(enum.Enum):
    GO = "go"
    ALREADY = "already"
    REFUSE = "refuse"


@dataclasses.dataclass(frozen=True)
class Decision:
    """Whether a stage may run; if not, what is missing and which command comes next, and on which host."""

    verdict: Verdict
    missing: str = ""
    next_stage: str = ""


GO = Decision(Verdict.GO)
GIVEN_UP = Decision(Verdict.REFUSE, "the destination has given the migration up", "rollback")  # its last step is left


def _already(next_stage: str) -> Decision:
    return Decision(Verdict.ALREADY, next_stage=next_stage)


def _refuse(missing: str, next_stage: str) -> Decision:
    return Decision(Verdict.REFUSE, missing, next_stage)


# Which command comes next, by the state of the host that one looks at. `@destination` and `@source` say where.
NEXT: dict[tuple[Role, State], str] = {
    (Role.SOURCE, S.PREPARING): "prepare-data",
    (Role.SOURCE, S.PREPARED): "import-data@destination",
    (Role.SOURCE, S.DUMPING): "create-dump",
    (Role.SOURCE, S.OFFERED): "create-dump",
    (Role.SOURCE, S.DUMPED): "restore-dump@destination",
    (Role.SOURCE, S.FINISHING): "finish",
    (Role.SOURCE, S.ROLLING_BACK): "rollback",
    (Role.DESTINATION, S.RECEIVING): "prepare-data@source",
    (Role.DESTINATION, S.RECEIVED): "import-data",
    (Role.DESTINATION, S.IMPORTING): "import-data",
    (Role.DESTINATION, S.IMPORTED): "create-dump@source",
    (Role.DESTINATION, S.RECEIVING_DUMP): "create-dump@source",
    (Role.DESTINATION, S.DUMP_RECEIVED): "create-dump@source",
    (Role.DESTINATION, S.OWNED): "restore-dump",
    (Role.DESTINATION, S.RESTORING): "restore-dump",
    (Role.DESTINATION, S.RESTORED): "finish@source",
    (Role.DESTINATION, S.ABANDONING): "rollback@source",
}


def next_stage(role: Role, state: State) -> str:
    """The command that carries a migration on, with `@source` or `@destination` where it belongs; "" when ended."""
    return NEXT.get((role, state), "")


def decide(stage: str, here: State | None, there: State | None = None) -> Decision:
    """May `stage` run on the host where it belongs, whose state is `here`? `there` is the other host's, where asked.

    Answers GO, ALREADY (it has succeeded; doing nothing is right) or REFUSE with what is missing.
    """
    return _DECIDERS[stage](here, there)


def step(here: State | None, there: State | None) -> str:
    """The stage that carries a migration on, for who does them all in turn and knows both states; "" when it has ended.

    It leads forward wherever the destination has not given up. `decide` of that stage agrees with it.
    """
    if here in ENDED:
        return ""
    if here is S.FINISHING:
        return "finish"
    if here is S.ROLLING_BACK or there in (S.ABANDONING, S.ABANDONED):
        return "rollback"
    if here in (S.OFFERED, S.DUMPED):
        if there in (S.RESTORED, S.FINISHED):
            return "finish"
        if there in (S.OWNED, S.RESTORING):
            return "restore-dump"
        return "create-dump" if here is S.OFFERED and there in (S.RECEIVING_DUMP, S.DUMP_RECEIVED) else "rollback"
    if here is S.DUMPING:
        return "create-dump"
    if here is S.PREPARED and there in (S.RECEIVED, S.IMPORTING):
        return "import-data"
    if here is S.PREPARED and there in (S.IMPORTED, S.RECEIVING_DUMP, S.DUMP_RECEIVED):
        return "create-dump"
    return "prepare-data"


def _prepare_data(here: State | None, there: State | None) -> Decision:
    if here is None or here in ENDED:
        return GO
    if there in (S.ABANDONING, S.ABANDONED):
        return GIVEN_UP
    if here is S.PREPARING:
        return GO
    if here is S.PREPARED:
        if there in (S.RECEIVED, S.IMPORTING):
            return _already("import-data@destination")
        if there in (S.RECEIVING, S.IMPORTED, S.RECEIVING_DUMP, S.DUMP_RECEIVED, None):
            return GO  # RECEIVING: what it had received turned out to be damaged
    return _refuse(f"the migration is past it (state {here})", next_stage(Role.SOURCE, here) or "status")


def _import_data(here: State | None, _there: State | None) -> Decision:
    if here is None:
        return _refuse("no data has arrived", "prepare-data@source")
    if here in (S.ABANDONING, S.ABANDONED):
        return _refuse("the migration was given up", "rollback@source")
    if here in (S.RECEIVED, S.IMPORTING):
        return GO
    if here is S.RECEIVING:
        return _refuse("the data has not arrived completely", "prepare-data@source")
    return _already(next_stage(Role.DESTINATION, here))


def _create_dump(here: State | None, there: State | None) -> Decision:
    if here is None or here in ENDED:
        return _refuse("the data has not been sent", "prepare-data")
    if here is S.PREPARING:
        return _refuse("the data has not been sent completely", "prepare-data")
    if there in (S.ABANDONING, S.ABANDONED):
        return GIVEN_UP
    if here is S.DUMPED:
        return _already("restore-dump@destination")
    if here is S.OFFERED:
        if there in (S.OWNED, S.RESTORING):
            return _already("restore-dump@destination")
        if there in (S.RESTORED, S.FINISHED):
            return _already("finish")
        if there in (S.RECEIVING_DUMP, S.DUMP_RECEIVED):
            return GO  # the offer was lost: it is made again
        return GIVEN_UP
    if here not in (S.PREPARED, S.DUMPING):  # after DUMPING it was killed: it thaws, and begins anew
        return _refuse(f"the migration is in state {here}", next_stage(Role.SOURCE, here) or "status")
    if there in (S.IMPORTED, S.RECEIVING_DUMP, S.DUMP_RECEIVED):
        return GO
    if there in (S.RECEIVED, S.IMPORTING):
        return _refuse("the data that was sent has not been imported", "import-data@destination")
    return _refuse("the destination does not have the data", "prepare-data")


def _restore_dump(here: State | None, _there: State | None) -> Decision:
    if here in (S.DUMP_RECEIVED, S.OWNED, S.RESTORING):  # DUMP_RECEIVED: the offer came, to take it was not recorded
        return GO
    if here in (S.RESTORED, S.FINISHED):
        return _already("finish@source")  # also where this host had ended it alone, and the source has come back
    if here is None:
        return _refuse("no dump has arrived", "prepare-data@source")
    if here in (S.ABANDONING, S.ABANDONED):
        return _refuse("the migration was given up", "rollback@source")
    if here in (S.RECEIVING_DUMP, S.IMPORTED):
        return _refuse("no complete dump has arrived", "create-dump@source")
    return _refuse(f"no dump has arrived (state {here})", next_stage(Role.DESTINATION, here))


def _finish(here: State | None, there: State | None) -> Decision:
    if here is None or here is S.ROLLED_BACK:
        return _refuse("nothing has been migrated", "prepare-data")
    if here is S.FINISHED:
        return _already("")
    if here is S.FINISHING:
        return GO
    if here in (S.OFFERED, S.DUMPED):
        if there in (S.RESTORED, S.FINISHED):  # with OFFERED: it was taken, only the answer got lost
            return GO
        if there in (S.ABANDONING, S.ABANDONED):
            return GIVEN_UP
        if here is S.OFFERED:
            return _refuse("whether it was handed over is unknown", "rollback")
        return _refuse("it does not run on the destination yet", "restore-dump@destination")
    return _refuse(f"it has not been handed over (state {here})", next_stage(Role.SOURCE, here))


def _rollback(here: State | None, there: State | None) -> Decision:
    if here is None:
        return _refuse("nothing has been migrated", "prepare-data")
    if here is S.ROLLED_BACK:
        return _already("prepare-data")
    if here is S.FINISHED or here is S.FINISHING or there in (S.RESTORED, S.FINISHED):
        return _refuse("it already runs on the destination", "finish" if here is not S.FINISHED else "status")
    return GO


_DECIDERS = {
    "prepare-data": _prepare_data,
    "import-data": _import_data,
    "create-dump": _create_dump,
    "restore-dump": _restore_dump,
    "finish": _finish,
    "rollback": _rollback,
}
