# SPDX-License-Identifier: GPL-2.0-or-later
"""Freeze the container, dump its memory, and send that with what has changed on its disk since the last round.

Memory and disk are from the same instant: the snapshot is made and the memory dumped while the container is frozen and
cut off from its network. When everything has arrived and been verified, the destination takes over ownership; from then
on only it may let the container run. The copy on the source stays frozen, with all its memory, until `finish` or
`rollback`. If anything fails before that, the container is thawed and keeps running. Next comes `migrator restore-dump`
on the destination.

If the migration was begun with --no-memory, the container is instead fenced and then stopped, and only the last changes
on its disk are sent. If anything fails it is started again.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses

from migrator.base.result import Result
from migrator.copies import older_journal, standing
from migrator.criu import criu_dump
from migrator.errors import UsageError
from migrator.errors.containers import NoMigration
from migrator.errors.data import NoSpace
from migrator.host import lxc
from migrator.record import container_lock, image_folders
from migrator.record.journal import DEFAULT_PATH, Journal, Migration
from migrator.record.migration_paths import Layout, locked
from migrator.record.states import Role, State
from migrator.remote.answering import Place, Receivers, Service
from migrator.remote.other_host import connected
from migrator.transfer import room_bounds, spool
from migrator.transfer.messages import ImagesTransfer, IncrementTransfer
from stages.steps import arguments, freeze_and_offer, move_arguments, offer, restore_over, room, take
from stages.steps.handover import INCREMENT
from stages.steps.options import MAX_DOWNTIME, MoveRequest, StandstillOptions

NAME = "create-dump"
HELP = "freeze the container and send its memory (on the source)"


@dataclasses.dataclass(frozen=True)
class CreateDumpOptions:
    request: MoveRequest
    standstill: StandstillOptions = dataclasses.field(default_factory=StandstillOptions)
    dry_run: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_container(parser)
    arguments.add_destination(parser)
    parser.add_argument("--max-downtime", metavar="SECONDS", type=arguments.positive, default=MAX_DOWNTIME,
                        help="thaw and give up if dump and transfer take longer (default: %(default)g)")
    move_arguments.add_stop_timeout(parser)
    move_arguments.add_ignore(parser)
    arguments.add_dry_run(parser)


def options(args: argparse.Namespace) -> CreateDumpOptions:
    return CreateDumpOptions(
        MoveRequest(arguments.container(args), args.destination, arguments.connect(args)),
        StandstillOptions(args.max_downtime, args.stop_timeout, tuple(args.ignore)), args.dry_run)


# --- on the source --------------------------------------------------------------------------------------------


def run(options: CreateDumpOptions) -> Result:
    arguments.require_root(NAME)
    request, dry_run = options.request, options.dry_run
    name, lxcpath = request.container.name, request.container.lxcpath
    container = lxc.Container(name, lxcpath)
    with contextlib.ExitStack() as told, Journal(DEFAULT_PATH) as journal, locked(name, lxcpath=lxcpath), \
            contextlib.ExitStack() as stack:
        migration = journal.latest(name, lxcpath, Role.SOURCE)
        if migration is None:
            raise NoMigration(name=name, stage=NAME, next=f"migrator prepare-data {name} -d {request.destination}")
        if not dry_run:
            older_journal.bring_up(migration)
        if migration.state is State.DUMPING and not dry_run:
            freeze_and_offer.heal(migration)
        if migration.state is State.PREPARED:
            freeze_and_offer.require_running(container)
        if not dry_run:
            standing.restore_silence(migration)
        with offer.undecided(migration):
            there = stack.enter_context(connected(request.connect, request.destination))
        try:
            return freeze_and_offer.carry_out(request, options.standstill, migration, container, there, dry_run=dry_run)
        finally:  # what has come of it is told, whatever comes while connection and journal are closed
            told.enter_context(container_lock.held_back(raised=False))


# --- on the destination ---------------------------------------------------------------------------------------


def receive_increment(service: Service, asked: IncrementTransfer) -> Place:
    """Where the increment goes."""
    migration = service.migration(asked.id)
    _must_receive_dump(migration, asked)
    migration.note("increment", anew=True, increment_uuid=asked.uuid[:36])
    here = Layout(migration.lxcpath, migration.name, migration.id)
    target = here.snapshot(len(migration.data.rounds) + 1)
    behind = service.import_behind(here.spool / INCREMENT, target) if asked.behind else None
    return Place(here.spool, True, {INCREMENT}.__contains__, behind, service.disk_bounds(migration))


def receive_images(service: Service, asked: ImagesTransfer) -> Place:
    """Where the images go: memory if there is enough. They need not be on disk, as the source keeps what they hold."""
    migration = service.migration(asked.id)
    _must_receive_dump(migration, asked)
    if not migration.memory:
        raise UsageError(reason=f"migration {migration.id} moves no memory")
    here = Layout(migration.lxcpath, migration.name, migration.id)
    folder = here.images()  # of the same dump: when it began, those of an earlier one were dropped
    if folder is None:
        service.refuse_more(migration)
        folder, why = image_folders.place_images(here.image_folders(), asked.bytes)
        image_folders.make_images(folder, asked.bytes)
        try:
            spool.check_space(folder, asked.bytes, what=f"the memory of {migration.name}")
        except NoSpace:
            image_folders.remove_images(folder)
            raise
        migration.note("images", images=str(folder), why=why)
        service.images_of = migration.id
    return Place(folder, False, criu_dump.is_image, None,
                 room_bounds.of_images(folder) if service.grant.restricted else None)


def _must_receive_dump(migration: Migration, asked: IncrementTransfer | ImagesTransfer) -> None:
    if migration.state is not State.RECEIVING_DUMP or asked.attempt != offer.attempt(migration):
        raise UsageError(reason=f"migration {migration.id} is in state {migration.state} and does not expect this dump")
    room.require(migration, Layout(migration.lxcpath, migration.name, migration.id))  # or a spool is made elsewhere


HANDLERS = take.HANDLERS | restore_over.HANDLERS
RECEIVERS: Receivers = {IncrementTransfer: receive_increment, ImagesTransfer: receive_images}
