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

from migrator.base import log
from migrator.base.result import Result
from migrator.config import container_config
from migrator.copies import bases, leave, older_journal, standing
from migrator.criu import criu_dump
from migrator.errors import UsageError
from migrator.errors.containers import ContainerChanged, ContainerNotRunning, NoMigration, OutOfOrder
from migrator.errors.data import NoSpace
from migrator.host import btrfs, lxc
from migrator.record import container_lock, image_folders, next_commands
from migrator.record.decisions import Verdict, decide
from migrator.record.journal import DEFAULT_PATH, Journal, Migration
from migrator.record.migration_paths import Layout, locked
from migrator.record.states import Event, Role, State
from migrator.remote.answering import Place, Receivers, Service
from migrator.remote.other_host import connected, require_stable_path
from migrator.transfer import room_bounds, spool
from migrator.transfer.messages import ImagesTransfer, IncrementTransfer
from migrator.transfer.rpc import Connection
from stages import check
from stages.steps import arguments, ask_state, offer, restore_over, room, take, thaw_again
from stages.steps.dump import Dump
from stages.steps.handover import INCREMENT
from stages.steps.options import MAX_DOWNTIME, MoveRequest, StandstillOptions
from stages.steps.reconnect import Link
from stages.steps.stop import Stop

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
    check.add_stop_timeout(parser)
    check.add_ignore(parser)
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
            heal(migration)
        if migration.state is State.PREPARED:
            _require_running(container)
        if not dry_run:
            standing.restore_silence(migration)
        with offer.undecided(migration):
            there = stack.enter_context(connected(request.connect, request.destination))
        try:
            return carry_out(request, options.standstill, migration, container, there, dry_run=dry_run)
        finally:  # what has come of it is told, whatever comes while connection and journal are closed
            told.enter_context(container_lock.held_back(raised=False))


def carry_out(request: MoveRequest, standstill: StandstillOptions, migration: Migration, container: lxc.Container,
              there: Connection, *, link: Link | None = None, dry_run: bool = False) -> Result:
    """The stage over a connection that is there; `heal` has been called before where it was killed.

    In a move in one go `link` can make new connections.
    """
    name = migration.name
    with offer.undecided(migration):
        state_there = ask_state.state(there, migration)
    decision = decide(NAME, migration.state, state_there)
    next_ = next_commands.command(decision.next_stage, migration) if decision.next_stage else ""
    if not dry_run:
        with offer.undecided(migration):
            offer.settle(migration, state_there)
    if decision.verdict is Verdict.REFUSE:
        raise OutOfOrder(stage=NAME, missing=decision.missing, next=next_)
    if migration.state is State.OFFERED and not dry_run:
        with offer.undecided(migration):
            standing.require(migration, NAME, next_commands.anew(migration) if link else "")
            migration.note("leave", leave=leave.given(migration.handover.leave, leave.BY_HAND))
        offer.make(migration, there)
        next_ = next_commands.next_command(migration)
    if offer.settled(migration, state_there) is State.DUMPED:
        return Result({"migration": migration.id, "name": name, "stage": NAME, "already": True, "next": next_},
                      f"{name} has already been dumped and handed over. Next: {next_}")
    bases.refuse_another(migration, NAME)
    looked = check.before_stage(request, standstill.ignore, container, there, known_copy=True,
                                bridges=migration.begun.bridges, memory=migration.memory)
    bases.refuse_another_disk(migration, NAME)
    _refuse_changed(migration, container)
    if migration.state is not State.DUMPING:  # --dry-run of what an earlier one has left frozen
        _require_running(container)
    dump = handover(standstill, migration, container, there, looked, link)
    if dry_run:
        return dump.described()
    require_stable_path(there)
    return dump.run()


def handover(standstill: StandstillOptions, migration: Migration, container: lxc.Container, there: Connection,
             looked: check.Look, link: Link | None = None) -> Dump | Stop:
    """The way in which this container is handed over: with its memory or without."""
    return (Dump(standstill, migration, container, there, looked, link) if migration.memory
            else Stop(standstill, migration, container, there, link))


def heal(migration: Migration) -> None:
    """An earlier create-dump was killed before it offered the token: the container is ours, and it begins anew.

    A first Ctrl-C waits until it runs: one that is told to end, to be started again, would stay stopped.
    """
    log.warning(f"An earlier create-dump of {migration.name} was killed; the container is first thawed or "
                "started again")
    with container_lock.held_back():
        left = offer.drop_here(migration, runs=thaw_again.thaw_source(migration))  # nobody may take it up for days
        container_config.unfence(migration.lxcpath / migration.name, migration.id)
        migration.move(Event.THAW, **left)


def _require_running(container: lxc.Container) -> None:
    """What stands still by now was frozen by somebody else, and is not given back by a move."""
    if (state := container.state) != "RUNNING":
        raise ContainerNotRunning(name=container.name, lxcpath=container.lxcpath, state=state)


def _refuse_changed(migration: Migration, container: lxc.Container) -> None:
    config = container_config.read(container.config_file, container.name)
    if config.digest != migration.data.config_digest:
        next_ = next_commands.command("prepare-data", migration)
        raise ContainerChanged(name=container.name, reason="its configuration is different", next=next_)
    base = Layout(container.lxcpath, container.name, migration.id).snapshot(len(migration.data.rounds))
    if not btrfs.is_subvolume(base):
        next_ = next_commands.command("rollback", migration)
        raise ContainerChanged(name=container.name, reason=f"the snapshot {base} is gone", next=next_)


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
