# SPDX-License-Identifier: GPL-2.0-or-later
"""Move a running container to another host in one go: all stages one after the other, over one connection.

Both hosts and the container are compared. The disk is sent while the container runs, and imported on the destination
while it arrives, in rounds as long as they get smaller. Then the container is frozen, its memory and the last changes
are sent, and it runs on there. When something fails after the freeze, the container is thawed and runs on here, as far
as that is safe. Ctrl-C gives the attempt up; a second one ends the program at once. Broken off in whatever way, it goes
on with `migrator resume`.

With --no-memory the container is stopped instead, and started anew on the destination: for what CRIU cannot dump.
"""

from __future__ import annotations

import argparse

from migrator.base import log
from migrator.base.result import Result
from migrator.copies import older_journal, standing
from migrator.host import lxc
from migrator.record.journal import DEFAULT_PATH, Journal
from stages import check, prepare_data
from stages.steps import arguments, dry_run
from stages.steps.drive import Drive, locked_for

NAME = "migrate"
HELP = "move a running container in one go (on the source)"

# What `migrator resume` goes on with unless it is told otherwise.
OPTIONS = ("max_downtime", "max_rounds", "bwlimit", "reconnect", "stop_timeout", "ignore", "undefine_source")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_container(parser)
    arguments.add_destination(parser)
    prepare_data.add_place(parser)
    arguments.add_map_bridge(parser)
    add_options(parser)
    arguments.add_dry_run(parser)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those in OPTIONS, and --no-memory, which is recorded on both hosts."""
    check.add_no_memory(parser)
    check.add_stop_timeout(parser)
    parser.add_argument("--max-downtime", metavar="SECONDS", type=arguments.positive, default=120.0,
                        help="thaw here and give up when the container is frozen for longer (default: 120)")
    parser.add_argument("--max-rounds", metavar="N", type=rounds, default=5,
                        help="send the disk at most this many times before the freeze (default: 5)")
    parser.add_argument("--bwlimit", metavar="RATE", type=prepare_data.rate,
                        help="send at most RATE bytes a second (k, M, G) while the container runs")
    parser.add_argument("--reconnect", metavar="SECONDS", type=seconds, default=300.0,
                        help="try again for this long when the connection is lost, counted from the last progress; "
                        "0: give up at once (default: 300)")
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


def run(args: argparse.Namespace) -> Result:
    arguments.require_root(NAME)
    name, lxcpath = arguments.container_of(args)
    container = lxc.Container(name, lxcpath)
    with Journal(DEFAULT_PATH) as journal, locked_for(journal, name, lxcpath):
        migration = prepare_data.unfinished(journal, name, lxcpath, args.destination)
        args.options = {key: getattr(args, key) for key in OPTIONS}
        if args.dry_run:
            return dry_run.run(args, journal, container, migration)
        if migration:
            log.info(f"Going on with migration {migration.id}")
            older_journal.bring_up(migration)
            standing.restore_silence(migration)
        return Drive(args, journal, container, migration).run()
