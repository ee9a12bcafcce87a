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
from stages import check, prepare_data
from stages.steps import arguments, dry_run
from stages.steps.drive import Drive, locked_for
from stages.steps.options import MoveOptions, MoveRequest

NAME = "migrate"
HELP = "move a running container in one go (on the source)"


@dataclasses.dataclass(frozen=True)
class MigrateOptions:
    request: MoveRequest
    move: MoveOptions = dataclasses.field(default_factory=MoveOptions)
    dry_run: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_container(parser)
    arguments.add_destination(parser)
    prepare_data.add_place(parser)
    arguments.add_map_bridge(parser)
    add_options(parser)
    arguments.add_dry_run(parser)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of MoveOptions, and --no-memory, which is recorded on both hosts."""
    check.add_no_memory(parser)
    check.add_stop_timeout(parser)
    parser.add_argument("--max-downtime", metavar="SECONDS", type=arguments.positive, default=MoveOptions.max_downtime,
                        help="thaw here and give up if the container is frozen for longer (default: 120)")
    parser.add_argument("--max-rounds", metavar="N", type=rounds, default=MoveOptions.max_rounds,
                        help="send the disk at most this many times before the freeze (default: 5)")
    parser.add_argument("--bwlimit", metavar="RATE", type=prepare_data.rate,
                        help="send at most RATE bytes a second (k, M, G) while the container runs")
    parser.add_argument("--reconnect", metavar="SECONDS", type=seconds, default=MoveOptions.reconnect,
                        help="if the connection is lost, keep trying for SECONDS from the last progress; 0: give up at "
                        "once (default: 300)")
    check.add_ignore(parser)
    copy = parser.add_mutually_exclusive_group()
    copy.add_argument("--keep-source", dest="undefine_source", action="store_false", default=False,
                      help="keep the stopped, fenced copy here (the default)")
    copy.add_argument("--undefine-source", dest="undefine_source", action="store_true",
                      help="remove the copy here once the container runs there")


def seconds(text: str) -> float:
    """A number of seconds, for argparse."""
    value = float(text)
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return value


def rounds(text: str) -> int:
    """A number of rounds, for argparse."""
    value = int(text)
    if not 1 <= value <= 100:
        raise argparse.ArgumentTypeError("must be from 1 to 100")
    return value


def options(args: argparse.Namespace) -> MigrateOptions:
    return MigrateOptions(arguments.request(args), MoveOptions(
        args.max_downtime, args.stop_timeout, tuple(args.ignore), args.max_rounds, args.bwlimit, args.reconnect,
        args.undefine_source), args.dry_run)


def run(options: MigrateOptions) -> Result:
    arguments.require_root(NAME)
    request = options.request
    name, lxcpath = request.container.name, request.container.lxcpath
    container = lxc.Container(name, lxcpath)
    with Journal(DEFAULT_PATH) as journal, locked_for(journal, name, lxcpath):
        migration = prepare_data.unfinished(journal, name, lxcpath, request.destination)
        if options.dry_run:
            return dry_run.run(request, options.move, journal, container, migration)
        if migration:
            log.info(f"Continuing migration {migration.id}")
            older_journal.bring_up(migration)
            standing.restore_silence(migration)
        return Drive(NAME, request, options.move, journal, container, migration).run()
