# SPDX-License-Identifier: GPL-2.0-or-later
"""What `migrator resume` does with an interrupted migration, as functions of what is known; no I/O.

The model in tests/migrator/ runs these very functions, and `stages.resume` acts on them.
"""

from __future__ import annotations

from migrator.copies.leave import LEAST
from migrator.record.decisions import step
from migrator.record.states import ENDED, State

# On the destination: it has the token, or only needs to record that it has.
MAY_RESTORE = {State.DUMP_RECEIVED, State.OWNED}

# Answers of a source that has taken the token back, with this host's word or by force: it runs the container or is
# about to. A source that is still rolling back may already have thawed it.
TAKEN_BACK = {State.ROLLING_BACK, State.ROLLED_BACK}

# Answers of a source that does not run the container, and will not until this host has said that it never will. The
# exception is a forced rollback, which waits until the word given to this host runs out (`migrator.copies.leave`).
LETS_RUN = {State.OFFERED, State.DUMPED, State.FINISHING, State.FINISHED}


def on_source(here: State, there: State | None, *, images: bool) -> str:
    """The next stage on the source, "" once the migration has ended: forward for as long as that can succeed.

    `images` says whether the destination still has the memory images; a reboot loses those kept in memory. Without them
    the container can never be restored there.
    """
    stage = step(here, there)
    return "rollback" if stage == "restore-dump" and there is State.OWNED and not images else stage


def is_known(ticket: str, *, known: bool, answered: str) -> bool:
    """Whether the host that answers for a migration is the one that the source began it with.

    That host made up a ticket when it recorded the migration: `ticket` is the one the source has, "" before the first
    answer, and `answered` the one this host has. A different host may answer under the same name and know the migration
    from an earlier round.
    """
    return known and (not ticket or answered == ticket)


def is_recorded_host(ticket: str, answered: str, fingerprint: str, found: str, *, same_place: bool) -> bool:
    """Whether we are connected to the host that the migration began with, so that data may be sent there.

    The `ticket` that it made up proves it, whatever address it is reached at. Without one, because it lost its journal
    or has never answered, a peer is proved by its key: `fingerprint` is the one on record, `found` the one we see. A
    host reached by SSH must have the address on record and the name that it gave itself then: the `same_place`.
    """
    if ticket and answered == ticket:
        return True
    return found == fingerprint if fingerprint else same_place and not found


def gives_back(ticket: str, *, known: bool, answered: str, offered: bool) -> bool:
    """Whether a host's word that it will never run this attempt lets the source go on.

    Not the word of a host that has never heard of the migration, or has lost its journal, once the token was `offered`:
    whoever took it may be running the container. Before any host answered, none can have taken it.
    """
    return is_known(ticket, known=known, answered=answered) or not (ticket or offered)


def must_ask(left: float | None) -> bool:
    """Whether this host must ask the source before it restores: the source may meanwhile have given it up for lost.

    `left` is for how many more seconds the source's word holds; None if it has given none since this host last booted.
    """
    return left is None or left < LEAST


def on_destination(here: State, source: State | None, *, images: bool) -> str:
    """What this host does: `restore-dump`, `rollback` (give the migration up), or "" if the source must act.

    `source` is what the source answered; None if it could not be reached or does not know the migration, in which case
    nothing is let run. Once the source rolls back (by force, without this host's word), nothing of that migration may
    run here any more.
    """
    if source in TAKEN_BACK:
        return "" if here in (State.RESTORED, *ENDED) else "rollback"
    if here not in MAY_RESTORE:
        return ""
    if images:
        return "restore-dump" if source in LETS_RUN else ""
    return "rollback" if here is State.OWNED else ""
