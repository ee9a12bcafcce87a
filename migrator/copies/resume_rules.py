# SPDX-License-Identifier: GPL-2.0-or-later
"""What `migrator resume` does where a migration was broken off, as functions of what is known; without I/O.

The model in tests/migrator/ runs these very functions. `stages.resume` acts on them.
"""

from __future__ import annotations

from migrator.copies.leave import LEAST
from migrator.record.decisions import step
from migrator.record.states import ENDED, State

# On the destination: it has the token, or has only to write down that it has.
MAY_RESTORE = {State.DUMP_RECEIVED, State.OWNED}

# What a source answers that has taken the token back, with this host's word or by force: it runs the container, or is
# about to. One that is still rolling back may have thawed it already.
TAKEN_BACK = {State.ROLLING_BACK, State.ROLLED_BACK}

# What a source answers that does not run the container, and will not before this host has said that it never does: but
# for a rollback by force, which waits until what this host was told is over (`migrator.copies.leave`).
LETS_RUN = {State.OFFERED, State.DUMPED, State.FINISHING, State.FINISHED}


def on_source(here: State, there: State | None, *, images: bool) -> str:
    """The stage that comes next on the source, "" when the migration has ended: forward, as long as that can succeed.

    `images` tells whether the destination still has the memory images, which a reboot takes away where they lay in
    memory. Without them it is never restored there.
    """
    stage = step(here, there)
    return "rollback" if stage == "restore-dump" and there is State.OWNED and not images else stage


def is_known(ticket: str, *, known: bool, answered: str) -> bool:
    """Whether a host that answers for a migration is the one that the source has sent it to.

    That one made up a ticket when it recorded the migration: `ticket` is what the source has, "" before the first
    answer, and `answered` what this host has. Another host may answer under the same name, and know the migration from
    an earlier round.
    """
    return known and (not ticket or answered == ticket)


def is_recorded_host(ticket: str, answered: str, fingerprint: str, found: str, *, same_place: bool) -> bool:
    """Whether who is connected to is the host that the migration has begun with, so that data may be sent there.

    The `ticket` that it made up proves it, under whatever address it is reached. Without one, as where it has lost its
    journal, or has never answered, a peer proves it by its key: `fingerprint` is the one on record, `found` this one's.
    Of a host over SSH it must be the address that is on record, and the name that it gave itself: the `same_place`.
    """
    if ticket and answered == ticket:
        return True
    return found == fingerprint if fingerprint else same_place and not found


def gives_back(ticket: str, *, known: bool, answered: str, offered: bool) -> bool:
    """Whether a host's word that it will never run the attempt lets the source go on.

    Not the word of one that has never heard of it, or has lost its journal, once the token was `offered`: whoever has
    taken it may run the container. Before anything was answered, nobody can have.
    """
    return is_known(ticket, known=known, answered=answered) or not (ticket or offered)


def must_ask(left: float | None) -> bool:
    """Whether this host asks the source before it restores: it may have been given up for lost meanwhile.

    `left` is for how many seconds what the source has said still holds; None where it has said nothing to this host
    since its last boot.
    """
    return left is None or left < LEAST


def on_destination(here: State, source: State | None, *, images: bool) -> str:
    """What this host does: `restore-dump`, `rollback` (it gives the migration up), or "" where the source must act.

    `source` is what the source has answered, None where it could not be asked, or knows nothing of it: then nothing is
    let run. Once it rolls back (forced, without this host's word) nothing of that migration may run here any more.
    """
    if source in TAKEN_BACK:
        return "" if here in (State.RESTORED, *ENDED) else "rollback"
    if here not in MAY_RESTORE:
        return ""
    if images:
        return "restore-dump" if source in LETS_RUN else ""
    return "rollback" if here is State.OWNED else ""
