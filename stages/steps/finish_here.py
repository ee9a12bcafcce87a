# SPDX-License-Identifier: GPL-2.0-or-later
"""The destination's half of a finish: the container stays here for good, and what was kept for a way back is removed.
"""

from __future__ import annotations

import contextlib
import math

from migrator.base import log
from migrator.config import container_config, include_copies
from migrator.copies import after_crash, bases, origins
from migrator.errors import MigratorError, UsageError
from migrator.errors.memory import StartFailed
from migrator.guest import live_steps
from migrator.host import btrfs, lxc
from migrator.record import lxc_disk
from migrator.record.journal import Migration
from migrator.record.migration_paths import Layout
from migrator.record.states import Event, State, after
from migrator.remote.answering import Handlers, Service
from migrator.transfer import received_snapshot
from migrator.transfer.messages import Done, Finish, Finished, Running
from stages.steps import earlier_stay, gave_way, settling, unrecorded


def running(service: Service, asked: Running) -> Done:
    """Raise unless the container was restored on this host; GoneThere if it was removed before the migration finished.

    RunsUnrecorded if it runs without that being on record. StoppedThere if it has run but does not now, and the
    source's copy may be of more use. Once it is on record that it runs, that holds, wherever it has gone since.
    """
    migration = service.migration(asked.id)
    if migration.state not in (State.RESTORED, State.FINISHED):
        unrecorded.refuse(migration)
        raise UsageError(reason=f"{migration.name} is {migration.state} here; it has not been restored")
    if migration.arrived.given_way:
        raise gave_way.never_finished(migration, "finish")
    if settling.is_gone(migration):
        raise settling.gone(migration)
    settling.refuse_stopped(migration)
    return Done(state=migration.state)


def finish(service: Service, asked: Finish) -> Finished:
    """The source has ended its copy for good: what was kept for a way back can go, once everything is on this disk."""
    migration = service.migration(asked.id)
    unrecorded.record(migration)
    stopped = end_here(migration)
    return Finished(state=migration.state, stopped=stopped)


def end_here(migration: Migration, *, alone: bool = False) -> str:
    """The container is this host's for good; `alone`: the source could not be asked any more. Safe to repeat.

    If this is requested again after the container has begun another migration, it is recorded and nothing else is done,
    because what is here is of a later stay. The same goes for a container that gave way. Raises DiskAway.

    Returns a remark if it does not run: its source is about to report that it has moved here.
    """
    newest = migration.journal.latest(migration.name, migration.lxcpath)
    later = newest is not None and (newest.id, newest.role) != (migration.id, migration.role)
    if migration.state is State.FINISHED and (later or migration.arrived.given_way):
        migration.move(Event.FINISHED, forced=alone)
        return ""
    after(migration.role, migration.state, Event.FINISHED)  # raises if it is not that far
    layout = Layout.of(migration)
    failed = ""
    if migration.state is State.RESTORED and lxc_disk.has_ended(layout, migration.begun.disk):
        container_config.unfence(layout.container, migration.id)  # everything else was done then
    else:
        with lxc_disk.held(layout) if migration.state is State.RESTORED else contextlib.nullcontext():
            failed = _make_ours(migration, layout)
    found = origins.rootfs_uuid(migration)
    migration.move(Event.FINISHED, forced=alone, **({"rootfs_uuid": found} if found else {}))
    if migration.memory:  # a restore that was killed may not have come to it
        live_steps.put_back_in(migration.name, migration.lxcpath)
    _drop_includes(layout)
    drop_way_back(migration)
    log.debug(f"{migration.name} belongs to this host for good")
    return " ".join(filter(None, [failed and f"{failed.rstrip('.')}.", _stopped(migration, layout)]))


def _stopped(migration: Migration, layout: Layout) -> str:
    """How it stands if it does not run; "" if it runs or that cannot be determined."""
    with contextlib.suppress(MigratorError, OSError):
        state = lxc.Container(migration.name, migration.lxcpath).state
        if state == "STOPPED" and not settling.lives(layout, layout.rootfs):
            return f"It is stopped; start it with: lxc-start -n {migration.name} -P {migration.lxcpath}"
    return ""


def _make_ours(migration: Migration, layout: Layout) -> str:
    """Make sure that all of it is on this disk and nothing keeps it from running; a fence left unseen would stay.

    Returns why it could not be started, if it was stopped and fenced.
    """
    failed = ""
    if btrfs.is_subvolume(layout.rootfs):
        btrfs.sync(layout.rootfs)  # what programs had fsynced on the source's disk is then safe here too
    if settling.stands_stopped(migration) and after_crash.has_stopped(migration):
        log.warning(f"{migration.name} has run here, and has since stopped. Its whole disk is here; start it with: "
                    f"lxc-start -n {migration.name} -P {migration.lxcpath}")
    elif settling.stands_fenced(migration):  # and the source's copy has ended, so nobody else runs it any more
        try:
            settling.go_on(migration, math.inf)
        except StartFailed as error:  # it is all here, and nothing prevents starting it
            failed = str(error)
            log.warning(failed)
    # In case a killed restore-dump had not got to it. First, because it can fail, and what has a fence counts as a
    # copy.
    container_config.unfence(layout.container, migration.id)
    return failed


def _drop_includes(layout: Layout) -> None:
    """Drop copies of included files from earlier stays.

    Not when giving way: that would read other containers' configurations, and the source is waiting.
    """
    if lxc_disk.is_here(layout) and not settling.is_replaced(layout):  # another container's are its own
        include_copies.drop_unused(layout.container, keep=layout.id)


def give_way(migration: Migration) -> None:
    """It ran here and does not now: the source goes on with its own copy. What was kept for the way back is removed."""
    migration.move(Event.FINISHED, given_way=True)
    try:  # the source must be told regardless
        drop_way_back(migration)
    except (MigratorError, OSError) as error:
        log.warning(f"{migration.name} has yielded to the source's copy, but something of it is left for now: {error}")


def drop_way_back(migration: Migration) -> None:
    """Remove what was kept on the destination until it was certain that the container stays."""
    layout = Layout.of(migration)
    for old in (layout.old, layout.former_old):
        earlier_stay.drop(migration, layout, old)
    layout.drop_images()
    received_snapshot.clear(layout.folder, layout.spool)
    layout.drop_spool()
    bases.prune(migration)


HANDLERS: Handlers = {Running: running, Finish: finish}
