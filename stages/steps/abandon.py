# SPDX-License-Identifier: GPL-2.0-or-later
"""The destination's half of a rollback: record, for good, that it never runs this attempt, and remove what it brought.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from migrator.base import log
from migrator.base.result import Result, of_dry_run
from migrator.copies import bases
from migrator.errors import MigratorError
from migrator.errors.containers import AlreadyRuns
from migrator.host import btrfs
from migrator.host.btrfs import Subvolume
from migrator.record import next_commands
from migrator.record.journal import AlreadyRecorded, Migration
from migrator.record.migration_paths import Layout
from migrator.record.next_commands import this_host
from migrator.record.states import Event, State
from migrator.remote.answering import Handlers, Service, is_past
from migrator.transfer.messages import Abandon, Abandoned
from stages.steps import unrecorded

STAGE = "rollback"


def give_up_here(migration: Migration, *, dry_run: bool = False) -> Result:
    """For a rollback typed on the destination: this host never runs the attempt.

    The source thaws once it hears of that.
    """
    if dry_run:
        base = _base(migration, _imported(migration))
        return of_dry_run(deletions(migration, [base.path.name] if base else []))
    _abandon(migration, _imported(migration), here=True)
    next_ = next_commands.command("rollback@source", migration)
    left = ("nothing of it is left except what the next attempt can start from" if migration.ended
            else "the next rollback removes what is left of it")
    return Result({"migration": migration.id, "name": migration.name, "stage": STAGE, "already": False, "next": next_},
                  f"{migration.name} will not run here, and {left}. Next: {next_}")


def _imported(migration: Migration) -> list[str]:
    """The uuids of what has arrived, which the source still has as long as it has not given the migration up."""
    return [each.uuid for each in migration.data.rounds]


def _base(migration: Migration, held: Sequence[str]) -> Subvolume | None:
    """What the next attempt can start from: the newest snapshot that is safely on disk here and that the source has."""
    layout = Layout.of(migration)
    return bases.common(layout, held, bases.on_disk(migration))


def abandon(service: Service, asked: Abandon) -> Abandoned:
    """Record that this host will never let this attempt run, then remove what it has brought; safe to repeat.

    An attempt that this host has never heard of is recorded too, so that a message still in flight cannot begin it. It
    has brought nothing, so nothing is removed and no lock is taken: a container of that name is someone else's. The
    exception is a container that lives in what that very attempt has made: then the attempt's record was lost, and
    CopyNotEnded says so. The answer says when the attempt was not `known`: the host that the token was offered to may
    be a different one, or this one before it lost its journal.
    """
    migration = service.find(asked.id) or _never_begin(service, asked)
    if migration.never_began:
        if not migration.ended:  # it was interrupted between two records
            migration.move(Event.ABANDONED)
        unrecorded.refuse(migration)
        return Abandoned(state=migration.state, known=False)
    service.end_behind()
    held = asked.held[:bases.HELD_MAX]
    _abandon(migration, held, gone=asked.gone)
    kept = _base(migration, held)
    return Abandoned(state=migration.state, kept=kept.stream_uuid if kept else "", known=True, ticket=migration.ticket)


def _never_begin(service: Service, asked: Abandon) -> Migration:
    """The record of an attempt that was not known here a moment ago; raises Busy if it is just beginning."""
    lxcpath = service.lxcpath(asked.lxcpath)
    service.refuse_crowds()
    service.refuse_abandons()
    try:
        return service.journal.never_begin(
            id=asked.id, name=asked.name, lxcpath=lxcpath, peer=service.grant.source(asked.source_host),
            caller=service.grant.caller)
    except AlreadyRecorded:
        return service.migration(asked.id)


def _abandon(migration: Migration, held: Sequence[str], *, here: bool = False, gone: bool = False) -> None:
    """`held` are the snapshots that the source has; `here`: the source does not know of it yet; `gone`: as in `tell`.
    """
    from stages.steps import finish_here, gave_way, put_away, settling, stopped_here

    if migration.arrived.given_way:  # it had run here, and the source was to go on without that copy
        gave_way.refuse_back(migration)
        return
    if migration.state is State.RESTORING:
        settling.settle(migration)
    if settling.is_gone(migration):
        if not gone:
            raise settling.gone(migration)
        gave_way.refuse_lost(migration)
        finish_here.give_way(migration)
        return
    if migration.state in (State.RESTORED, State.FINISHED):
        settling.refuse_stopped(migration)
        next_ = next_commands.command("finish@source", migration)
        if here and (settling.stands_fenced(migration) or stopped_here.is_stopped(migration)):
            next_ = next_commands.command("resume", migration)  # it has run and does not any more
        raise AlreadyRuns(name=migration.name, destination=this_host(), next=next_)
    if migration.state not in (State.ABANDONING, State.ABANDONED):  # otherwise the token is back
        unrecorded.refuse(migration)
    if migration.state is not State.ABANDONED:
        layout = Layout.of(migration)
        base = _base(migration, held)
        on_disk = migration.data.on_disk is True
        if migration.state is not State.ABANDONING:  # there may be no spool until the first round has arrived
            on_disk = migration.state is not State.RECEIVING or bool(migration.data.rounds)
        migration.move(Event.ABANDON, given_up_here=here or migration.ending.given_up_here,
                       on_disk=on_disk, kept=[base.path.name] if base else [])
        try:  # the token is back already and the source must be told: a disk failing here must not keep it frozen there
            if base:
                with contextlib.suppress(MigratorError, OSError):  # it may be in use: no reason to keep more than that
                    bases.supersede(migration)
            put_away.drop_attempt(migration, layout)
            migration.move(Event.ABANDONED)
        except (MigratorError, OSError) as error:
            log.warning(f"{migration.name} will not run here, but something of it is left for now: {error}")
    elif not (here or is_past(migration)):  # it was typed here first, and only now the source says what it has
        with contextlib.suppress(MigratorError, OSError):  # as above; the next attempt settles what is kept
            bases.drop(migration, but=[path for path in bases.paths(migration) if btrfs.info(path).stream_uuid in held])


def deletions(migration: Migration, kept: list[str]) -> list[tuple[str, list[str]]]:
    """For --dry-run: the commands that remove this migration's snapshots, except those it keeps."""
    layout = Layout.of(migration)
    return [(this_host(), ["btrfs", "subvolume", "delete", str(path)])
            for path in layout.own_snapshots() if path.name not in kept]


HANDLERS: Handlers = {Abandon: abandon}
