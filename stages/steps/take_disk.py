# SPDX-License-Identifier: GPL-2.0-or-later
"""The destination's half of prepare-data: a migration begins here, and its disk is taken in."""

from __future__ import annotations

import secrets
from pathlib import Path

from msgspec import UNSET

from migrator.copies import after_crash, bases, origins
from migrator.errors import UsageError
from migrator.errors.containers import AlreadyMigrating
from migrator.record import lxc_disk, next_commands
from migrator.record.detail import DiskRound
from migrator.record.journal import AlreadyRecorded, Migration
from migrator.record.migration_paths import Layout
from migrator.record.states import Event, Role, State
from migrator.remote import destination
from migrator.remote.answering import Handlers, Place, Receivers, Service, keep_config
from migrator.transfer import room_bounds, spool
from migrator.transfer.messages import (
    AskLxcPath,
    AskState,
    AskSubvolumes,
    Begin,
    Begun,
    DiskTransfer,
    Done,
    LxcPath,
    MigrationState,
    RoundReceived,
    Subvolumes,
)
from stages.steps import room, send_disk


def begin(service: Service, asked: Begin) -> Begun:
    """Begin a migration or its next round: check that there is a place for it and say what is here already."""
    layout = Layout(service.lxcpath(asked.lxcpath), asked.name, asked.id)
    source_name = asked.source_name or asked.name
    origin = service.origin(asked.origin or asked.id, service.known(asked.id))
    service.grant.check_config(asked.name, asked.config, asked.mapped_root)
    _refuse_others(service, layout, service.known(asked.id), source_name, origin)  # before others are kept off it
    with service.locking(layout.name, layout.lxcpath):
        migration = _recorded(service, layout, asked, source_name, origin)
    layout.make_folder()
    layout.spool.mkdir(mode=0o700, exist_ok=True)
    keep_config(layout, asked, includes=service.grant.hooks)
    return Begun(state=migration.state, disk_bytes=asked.disk_bytes,
                 subvolumes=tuple(room.bases_for(service, layout, origin)), ticket=migration.ticket)


def _destination(text: str) -> str:
    """The name that the source uses for this host, for its commands; raises DestinationInvalid if it cannot be one."""
    destination.parse(text)
    return text  # as it was typed there


def _is_named(service: Service, asked: Begin) -> bool:
    """Whether commands for this host must spell out the LXC path.

    Also if one was chosen for a caller who may use only that one, as it need not be this host's default.
    """
    return asked.lxcpath_given or bool(service.grant.lxcpaths)


def _recorded(service: Service, layout: Layout, asked: Begin, source_name: str, origin: str) -> Migration:
    """The migration's record, created if it begins; with the container locked. Raises DiskAway."""
    migration = service.known(asked.id)
    _refuse_others(service, layout, migration, source_name, origin)
    if migration:
        room.require_disk(migration, layout)
        room.check(service, layout, asked, origin)
        service.note_consent(migration)
        before = migration.data.announced
        if before is not None and asked.disk_bytes > room_bounds.TIMES * before:
            migration.note("announced", announced=asked.disk_bytes)  # it may grow, but not for ever
        return migration
    service.refuse_new()
    room.check(service, layout, asked, origin)
    try:
        migration = service.journal.create(
            id=layout.id, role=Role.DESTINATION, name=layout.name, lxcpath=layout.lxcpath,
            peer=service.grant.source(asked.source_host), event=Event.RECEIVE,
            destination=_destination(asked.destination), other_name=source_name, origin=origin,
            moves=None if asked.moves is UNSET else list(asked.moves[-origins.MOVES_MAX:]),
            source_lxcpath=str(Path(asked.source_lxcpath)), destination_lxcpath=str(layout.lxcpath),
            lxcpath_given=_is_named(service, asked), rounds=[], mapped_root=asked.mapped_root,
            one_shot=asked.one_shot, memory=asked.memory,
            caller=service.grant.caller, hooks=service.grant.hooks, hooks_fix=service.grant.hooks_fix,
            ticket=secrets.token_hex(16), announced=asked.disk_bytes, disk=lxc_disk.of(layout.lxcpath),
        )
    except AlreadyRecorded:  # given up before it had begun, at this very moment
        raise _has_ended(layout.id) from None
    send_disk.settle_bases(migration, asked.held[:bases.HELD_MAX])
    return migration


def _has_ended(id_: str) -> UsageError:
    return UsageError(reason=f"migration {id_} has ended on this host")


def _refuse_others(service: Service, layout: Layout, migration: Migration | None, source_name: str,
                   origin: str) -> None:
    """Raise if what is there, or in progress there, is not the container that is coming.

    ContainerExists: from a caller who is not root, a name alone proves nothing. UsageError if the migration has ended
    or belongs elsewhere; NotAllowed or AlreadyMigrating if it begins while another one of that container is in
    progress.
    """
    if migration and (migration.name, migration.lxcpath) != (layout.name, layout.lxcpath):
        raise UsageError(reason=f"migration {layout.id} brings {migration.name} to {migration.lxcpath}, nothing else")
    renamed = source_name != layout.name or service.grant.restricted
    origins.refuse_foreign(service.journal, layout, origin, renamed=renamed)
    if migration and (migration.ended or migration.state is State.ABANDONING):
        raise _has_ended(layout.id)
    current = service.journal.latest(layout.name, layout.lxcpath)
    if not migration and current and not current.ended:
        if not service.grant.owns(current) and service.grant.restricted:
            raise service.grant.refusal(f"{layout.name} is already being moved here from elsewhere")
        raise AlreadyMigrating(name=layout.name, peer=current.peer, id=current.id,
                               next=next_commands.next_command(current), path=next_commands.path(current))


def receive_disk(service: Service, asked: DiskTransfer) -> Place:
    """Where a round's stream goes; it must be on disk before it is acknowledged."""
    migration, number = service.migration(asked.id), asked.round
    rounds = migration.data.rounds
    if not 1 <= number <= len(rounds) + 1 or len(rounds) > 1000:
        raise UsageError(reason=f"round {number} does not follow round {len(rounds)}")
    service.refuse_data(migration)
    here = Layout.of(migration)
    room.require(migration, here)
    migration.move(Event.RECEIVE)
    file = here.spool / f"disk-{number}"
    held = service.disk_bounds(migration)
    if service.end_behind():
        room.regain(here, number, held.leave)
    behind = service.import_behind(file, here.snapshot(number)) if asked.behind else None
    return Place(here.spool, True, {file.name}.__contains__, behind, held)


def received(service: Service, asked: RoundReceived) -> Done:
    """All of a round has arrived; remember which subvolume it must become."""
    migration, number = service.migration(asked.id), asked.round
    layout = Layout.of(migration)
    if not spool.is_complete(layout.spool / f"disk-{number}"):
        raise UsageError(reason=f"round {number} is not complete")
    rounds = [*migration.data.rounds[: number - 1], DiskRound(uuid=asked.uuid)]
    migration.move(Event.RECEIVED, rounds=rounds)
    return Done(state=migration.state)


def state(service: Service, asked: AskState) -> MigrationState:
    """What this host knows of a migration, and whether it still has what a restore needs."""
    migration = service.known(asked.id)
    if migration is None:
        return MigrationState(state=None, images=False)
    return MigrationState(state=migration.state, owner=migration.owner, ticket=migration.ticket,
                          images=after_crash.can_be_restored(migration))


def subvolumes(service: Service, asked: AskSubvolumes) -> Subvolumes:
    """The uuids of what increments of a container can start from here."""
    layout = Layout(service.lxcpath(asked.lxcpath), asked.name, "00000000")
    return Subvolumes(subvolumes=tuple(room.bases_for(service, layout, service.origin(asked.origin))))


def lxcpath_(service: Service, asked: AskLxcPath) -> LxcPath:
    """Where this host keeps its containers unless the source names another place."""
    return LxcPath(lxcpath=str(service.lxcpath(asked.lxcpath)))


HANDLERS: Handlers = {
    Begin: begin,
    RoundReceived: received,
    AskState: state,
    AskSubvolumes: subvolumes,
    AskLxcPath: lxcpath_,
}
RECEIVERS: Receivers = {DiskTransfer: receive_disk}
