# SPDX-License-Identifier: GPL-2.0-or-later
"""Send a full copy of a running container's disk, or what has changed since the last round.

A read-only snapshot is made while the container keeps running, and sent to the destination's spool. If an earlier copy
is already there (from an imported round, or because the container has been on that host before), only the difference
is sent. Next comes `migrator import-data` on the destination.
"""

from __future__ import annotations

import argparse
import dataclasses

from migrator.base.result import Result
from migrator.copies import after_crash
from migrator.errors.containers import OutOfOrder
from migrator.host import lxc
from migrator.record.decisions import Verdict, decide
from migrator.record.states import FROZEN
from migrator.remote.other_host import connected
from stages.steps import arguments, ask_state, examine, move_arguments, prologue, send_disk, take_disk
from stages.steps.options import MoveRequest

NAME = "prepare-data"
HELP = "send the disk of a running container (on the source)"


@dataclasses.dataclass(frozen=True)
class PrepareDataOptions:
    request: MoveRequest
    bwlimit: int | None = None  # bytes per second
    ignore: tuple[str, ...] = ()
    dry_run: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_request(parser)
    parser.add_argument("--bwlimit", metavar="RATE", type=move_arguments.rate,
                        help="send at most RATE bytes a second (k, M, G)")
    move_arguments.add_no_memory(parser)
    move_arguments.add_ignore(parser)
    arguments.add_dry_run(parser)


def options(args: argparse.Namespace) -> PrepareDataOptions:
    return PrepareDataOptions(arguments.request(args), args.bwlimit, tuple(args.ignore), args.dry_run)


def run(options: PrepareDataOptions) -> Result:
    arguments.require_root(NAME)
    request = options.request
    name, lxcpath = request.container.name, request.container.lxcpath
    container = lxc.Container(name, lxcpath)
    with prologue.working_on(request.container) as journal:
        migration = send_disk.unfinished(journal, name, lxcpath, request.destination)
        if migration and migration.state in FROZEN:  # it is frozen for a reason: nobody is to let it run
            raise OutOfOrder(stage=NAME, missing=decide(NAME, migration.state).missing,
                             next=after_crash.next_command(migration))
        examine.require_running(container)
        with connected(request.connect, request.destination) as there:
            if migration:
                decision = prologue.require_turn(NAME, migration, ask_state.state(there, migration))
                if decision.verdict is Verdict.ALREADY:
                    text = f"The data of {migration.name} has already been sent and is waiting to be imported."
                    return prologue.already(NAME, migration, text, prologue.next_command(migration, decision))
            checked = examine.before_stage(request, options.ignore, container, there, full=True,
                                           known_copy=migration is not None,
                                           memory=send_disk.with_memory(request, migration))
            return send_disk.carry_out(request, journal, migration, container, there, checked.disk_bytes,
                                       bwlimit=options.bwlimit, dry_run=options.dry_run)


HANDLERS = take_disk.HANDLERS
RECEIVERS = take_disk.RECEIVERS
