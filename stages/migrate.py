# SPDX-License-Identifier: GPL-2.0-or-later
"""Move a running container to another host in one go: all stages one after the other, over one connection.

Both hosts and the container are compared. The disk is sent while the container runs, and imported on the destination
while it arrives, in rounds as long as they get smaller. Then the container is frozen, its memory and the last changes
are sent, and it continues there. If something fails after the freeze, the container is thawed and keeps running here,
as far as that is safe. Ctrl-C gives up the attempt; a second one ends the program at once. However a migration was
interrupted, `migrator resume` continues it.

With --no-memory the container is instead stopped here and started on the destination, for what CRIU cannot dump.
"""

from __future__ import annotations

import argparse
import dataclasses

from migrator.base import log
from migrator.base.result import Result
from migrator.copies import older_journal, standing
from migrator.host import lxc
from migrator.record.journal import DEFAULT_PATH, Journal
from stages.steps import arguments, dry_run, move_arguments, prologue, send_disk
from stages.steps.drive import Drive
from stages.steps.drive_move import Move
from stages.steps.options import MoveOptions, MoveRequest

NAME = "migrate"
HELP = "move a running container in one go (on the source)"


@dataclasses.dataclass(frozen=True)
class MigrateOptions:
    request: MoveRequest
    move: MoveOptions = dataclasses.field(default_factory=MoveOptions)
    dry_run: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_request(parser)
    move_arguments.add_options(parser)
    arguments.add_dry_run(parser)


def options(args: argparse.Namespace) -> MigrateOptions:
    return MigrateOptions(arguments.request(args), MoveOptions(
        args.max_downtime, args.stop_timeout, tuple(args.ignore), args.max_rounds, args.bwlimit, args.reconnect,
        args.undefine_source), args.dry_run)


def run(options: MigrateOptions) -> Result:
    arguments.require_root(NAME)
    request = options.request
    name, lxcpath = request.container.name, request.container.lxcpath
    container = lxc.Container(name, lxcpath)
    with Journal(DEFAULT_PATH) as journal, prologue.locked_for(journal, name, lxcpath):
        migration = send_disk.unfinished(journal, name, lxcpath, request.destination)
        if options.dry_run:
            return dry_run.run(request, options.move, journal, container, migration)
        if migration:
            log.info(f"Continuing migration {migration.id}")
            older_journal.bring_up(migration)
            standing.restore_silence(migration)
        return Drive(Move(NAME, request, options.move, journal, container, migration)).run()
