# SPDX-License-Identifier: GPL-2.0-or-later
"""On the source: detects, by the container's own fence, that the journal is an older one restored from a backup.

The journal is on the host's root file system and the fence beside the container, so one can be restored without the
other. According to an older journal this host may have the token; it would then remove that very fence and start the
container, which may be running on its destination. So the fence is checked before anything is given back, and what the
journal lacks is added. From then on everything proceeds as after a crash in that state.
"""

from __future__ import annotations

import contextlib

from migrator.base import log
from migrator.config import container_config
from migrator.copies import leave
from migrator.record import next_commands
from migrator.record.journal import Migration
from migrator.record.states import Event, Role, State, after

# What would have been recorded next.
_NEXT = {
    State.PREPARING: Event.SENT,
    State.PREPARED: Event.FREEZE,
    State.DUMPING: Event.OFFER,
    State.OFFERED: Event.TAKEN,
    State.DUMPED: Event.FINISH,
}
_NOT_OFFERED = {State.PREPARING, State.PREPARED, State.DUMPING}
_HAS_TOKEN = {State.OWNED, State.RESTORING, State.RESTORED, State.FINISHED}  # on the destination


def reached(migration: Migration) -> State | None:
    """The state that it has reached at least, according to its fence; None if that says no more than the journal.

    From `finishing` on, which is never undone, the fence says that the container runs on its destination. In
    `preparing` and `prepared` there is no fence: it is written later, and removed before a thaw is recorded, unless the
    container was missing. A fence that cannot be read says nothing, so what is frozen gets thawed all the same.
    """
    if migration.role is not Role.SOURCE or migration.state not in _NEXT:
        return None
    folder = migration.lxcpath / migration.name
    runs = migration.state in (State.PREPARING, State.PREPARED) and not migration.copy.gone
    found = State.OFFERED if migration.handover.behind and migration.state in _NOT_OFFERED else None
    with contextlib.suppress(OSError):
        # The hook first: a configuration may be a symlink to a file system that hangs, and the container is standing
        # still.
        superseded = container_config.is_superseded(folder)
        if (superseded or runs) and (
                container_config.fence_of(container_config.text_of(folder / "config")) == migration.id):
            found = State.FINISHING if superseded else State.OFFERED
    return found


def bring_up(migration: Migration, there: State | None = None) -> None:
    """Record what the journal lacks; call with the container locked. If killed half-way, the next call carries on.

    `there` is the state on the destination: a destination that has the token must have been offered it.
    """
    wanted, why = reached(migration), note(migration)
    if wanted is None and migration.ticket and there in _HAS_TOKEN and migration.state in _NOT_OFFERED:
        wanted, why = State.OFFERED, f"{_older(migration)}, and on {next_commands.moved_to(migration)} it is {there}."
    if wanted is None:
        return
    log.warning(why)
    disk = container_config.disk_of(migration.lxcpath / migration.name)
    known = {"rootfs_uuid": disk} if disk and not migration.copy.rootfs_uuid else {}
    while migration.state is not wanted:
        event = _NEXT[migration.state]
        word = {"leave": leave.given(migration.handover.leave, leave.BY_HAND)} if event is Event.OFFER else {}
        done = after(migration.role, migration.state, event) is wanted
        migration.move(event, behind=not done, **known, **word)


def note(migration: Migration) -> str:
    """What the fence says beyond the journal, in a sentence; "" if nothing."""
    wanted, there = reached(migration), next_commands.moved_to(migration)
    if wanted is None:
        return ""
    if wanted is State.FINISHING:
        return f"{_older(migration)}, and its fence says that it has moved to {there}, and runs there."
    return f"{_older(migration)}, and its fence was written after that: it may run on {there}."


def _older(migration: Migration) -> str:
    return (f"The journal here is an older one, perhaps restored from a backup: it has {migration.name} as"
            f" {migration.state}")
