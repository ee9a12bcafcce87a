# SPDX-License-Identifier: GPL-2.0-or-later
"""What runs on the destination although its journal does not say so, being an older one from a backup, or a new one.

It is recognised by what it lives in.
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

# On the destination: what an older journal says of a container that runs there.
_BEFORE = {State.RECEIVING, State.RECEIVED, State.IMPORTING, State.IMPORTED, State.RECEIVING_DUMP, State.DUMP_RECEIVED,
           State.OWNED}
OLDER = {None, *_BEFORE}  # None: the journal was lost


def refuse(migration: Migration) -> None:
    """For what has never run here by the records: raise RunsUnrecorded if it is alive all the same.

    Ask before any answer that makes the source thaw. A disk that is not there shows nothing, and stops nobody.
    """
    if found := _living(migration):
        raise _error(migration, found)


def refuse_in_place(migration: Migration, layout: Layout) -> None:
    """Before a restore: raise RunsUnrecorded if something lives in the root file system that it would replace.

    Once an earlier restore has failed, nothing of it does. So it is a container that somebody is trying out.
    """
    if layout.is_own_rootfs() and (found := left_running.live_in("", layout.rootfs)):
        raise _error(migration, found)


def _error(migration: Migration, living: list[int]) -> RunsUnrecorded:
    there, how = renamed.told(migration, living)
    error = RunsUnrecorded(
        name=migration.name, destination=this_host(), there=there, how=how, lxcpath=migration.lxcpath,
        keep=next_commands.command("finish@source", migration, "--force", migration.id),
        next=next_commands.command("rollback@source", migration))
    if set(living) <= _tried_out(migration, Layout.of(migration), living):
        # Whoever kept that one would lose the memory, and what was written after the round.
        on = f"-P {migration.lxcpath}"
        error.instead = ("Somebody has started it, to try it out, from a disk made from an earlier round: it lacks all "
                         "that came after that, so do not end the one on the source for it. Stop it on "
                         f"{this_host()}, under the name that it has there now: lxc-stop -k {on} {there} -- to keep "
                         f"what it has written, rename it: lxc-copy -R {on} -n {there} -N NEWNAME -- after that: "
                         f"{error.fields['next']}")
    return error


def _tried_out(migration: Migration, layout: Layout, pids: list[int]) -> set[int]:
    return set(left_running.tried_out(layout, pids, {each.uuid for each in migration.data.rounds if each.uuid}))


def require_ours(migration: Migration, layout: Layout) -> None:
    """As `origins.require_ours`, but nobody is told to remove what runs in its place if that is it.

    Raises RunsUnrecorded.
    """
    try:
        origins.require_ours(layout)
    except ContainerExists:
        refuse(migration)
        raise


def record(migration: Migration) -> None:
    """The source has ended its copy in favour of what lives here: add what the journal lacks.

    Does nothing if nothing of it is alive. It is done all at once: a program that finds it in `restoring`, as an older
    version may have left it, may take what lives for half restored and end it. Raises JournalBroken, with nothing
    recorded.
    """
    from stages.steps import settling

    if migration.state in (*_BEFORE, State.RESTORING) and _living(migration):
        migration.state = State.RESTORING  # only in memory
        settling.record(migration, time.time())


def _living(migration: Migration) -> list[int]:
    """What was made from one of the rounds is a container that somebody is trying out, and nothing waits for that.

    No journal, however old, has the increment among its rounds. Only what is tried out in the migration's own place
    counts: whoever gives that back would remove its disk.
    """
    layout = Layout.of(migration)
    found = left_running.in_own(layout)
    tried = _tried_out(migration, layout, found)
    if tried:
        tried -= set(left_running.live_in("", layout.rootfs))  # asked once: it looks at every process of this host
    return [pid for pid in found if pid not in tried]
