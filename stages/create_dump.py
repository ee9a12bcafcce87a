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
from migrator.host import lxc
from migrator.record import container_lock
from migrator.record.states import State
from migrator.remote.other_host import connected
from stages.steps import (
    arguments,
    freeze_and_offer,
    move_arguments,
    offer,
    prologue,
    restore_over,
    take,
    take_dump,
)
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
    container = lxc.Container(request.container.name, request.container.lxcpath)
    with contextlib.ExitStack() as told, prologue.working_on(request.container) as journal, \
            contextlib.ExitStack() as stack:
        migration = prologue.leaving(journal, request.container, NAME, request.destination)
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
        finally:  # the outcome is reported whatever happens while connection and journal are closed
            told.enter_context(container_lock.held_back(raised=False))


HANDLERS = take.HANDLERS | restore_over.HANDLERS
RECEIVERS = take_dump.RECEIVERS
