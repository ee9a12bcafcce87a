# SPDX-License-Identifier: GPL-2.0-or-later
"""What runs on the destination though its journal does not say so: that is an older one, put back from a backup, or was
lost. It is told by what it lives in.
"""

from __future__ import annotations

import time

from migrator.copies import origins
from migrator.errors.containers import ContainerExists, RunsUnrecorded
from migrator.record import next_commands
from migrator.record.journal import Migration
from migrator.record.migration_paths import Layout
from migrator.record.next_commands import this_host
from migrator.record.states import State
from stages.steps import left_running, renamed

# On the destination: what an older journal says of what runs there.
_BEFORE = {State.RECEIVING, State.RECEIVED, State.IMPORTING, State.IMPORTED, State.RECEIVING_DUMP, State.DUMP_RECEIVED,
           State.OWNED}
OLDER = {None, *_BEFORE}  # None: it was lost


def refuse(migration: Migration) -> None:
    """Of what has never run here, for all that is on record: raises RunsUnrecorded where it lives all the same.

    To be asked before any answer by which the source thaws. A disk that is not there shows nothing, and keeps nobody.
    """
    if found := _living(migration):
        there, how = renamed.told(migration, found)
        raise RunsUnrecorded(
            name=migration.name, destination=this_host(), there=there, how=how, lxcpath=migration.lxcpath,
            keep=next_commands.command("finish@source", migration, "--force", migration.id),
            next=next_commands.command("rollback@source", migration))


def require_ours(migration: Migration, layout: Layout) -> None:
    """As `identity.require_ours`: nobody is told to remove what runs in its place, and is it. Raises RunsUnrecorded."""
    try:
        origins.require_ours(layout)
    except ContainerExists:
        refuse(migration)
        raise


def record(migration: Migration) -> None:
    """The source has ended its copy for what lives here: what the journal lacks is made up for.

    Does nothing where nothing of it lives. All at once: who finds it in `restoring`, as an older version may have left
    it, may take what lives for half restored, and end it. Raises JournalBroken, with nothing recorded.
    """
    from stages.steps import settling

    if migration.state in (*_BEFORE, State.RESTORING) and _living(migration):
        migration.state = State.RESTORING  # in memory alone
        settling.record(migration, time.time())


def _living(migration: Migration) -> list[int]:
    return left_running.in_own(Layout(migration.lxcpath, migration.name, migration.id))
