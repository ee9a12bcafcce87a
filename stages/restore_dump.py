# SPDX-License-Identifier: GPL-2.0-or-later
"""Let the container continue here: apply the last disk changes and restore its memory.

Everything that has arrived is checked against its digests first. The container runs from a writable snapshot, under
LXC's own monitor, and its new place is announced on the network at once. If the restore fails, nothing of it is left
running, and the source still holds the frozen container. Next comes `migrator finish` on the source.

If the migration was begun with --no-memory, the container is started from its disk.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses

from migrator.base import boot_clock
from migrator.base.result import Result
from migrator.copies import after_crash, resume_rules
from migrator.errors.containers import OutOfOrder
from migrator.record import lxc_disk, next_commands
from migrator.record.journal import Migration
from migrator.record.migration_paths import Layout
from migrator.record.states import State
from stages.steps import arguments, ask_source, force, prologue, restore_here, settling, stopped_here
from stages.steps.options import MAX_DOWNTIME, NamedContainer

NAME = "restore-dump"
HELP = "let the container continue here (on the destination)"


@dataclasses.dataclass(frozen=True)
class RestoreDumpOptions:
    container: NamedContainer
    max_downtime: float = MAX_DOWNTIME  # seconds
    force: str | None = None  # a migration's id; "" to be told what the risk is
    machine_is_off: bool = False
    dry_run: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_container(parser)
    parser.add_argument("--max-downtime", metavar="SECONDS", type=arguments.positive, default=MAX_DOWNTIME,
                        help="give up the restore after SECONDS (default: %(default)g)")
    arguments.add_force(
        parser, force="without asking the source, if that host is lost for good. Leave out the migration's ID to see"
                      " what that risks",
        off="with --force ID: you have made sure that the source is off and stays off; needed if that cannot be seen"
            " from here, as when another host answers under its name")
    arguments.add_dry_run(parser)


def options(args: argparse.Namespace) -> RestoreDumpOptions:
    return RestoreDumpOptions(arguments.container(args), args.max_downtime, args.force, args.machine_is_off,
                              args.dry_run)


def run(options: RestoreDumpOptions) -> Result:
    arguments.require_root(NAME)
    name = options.container.name
    with prologue.working_on(options.container) as journal:
        migration = prologue.arrived(journal, options.container, NAME)
        if migration.state is State.RESTORING and not options.dry_run:
            settling.settle(migration)
        if options.force is not None and not options.dry_run:
            return _forced(migration, options.force, options.max_downtime, off=options.machine_is_off)
        here = lxc_disk.held(Layout.of(migration))  # what cannot be seen does not run
        with here if migration.state is State.RESTORED else contextlib.nullcontext():
            stands = settling.stands_stopped(migration)
            chosen = stands and after_crash.has_stopped(migration)
            stopped = stands or stopped_here.is_stopped(migration)
        if stopped and not chosen:
            raise OutOfOrder(stage=NAME, missing=f"{name} has run here, and has since been stopped",
                             next=next_commands.command("resume", migration))
        if options.dry_run or not (chosen or migration.state in resume_rules.MAY_RESTORE):
            return restore_here.carry_out(migration, options.max_downtime, 0.0, dry_run=options.dry_run)
        end = ask_source.leave_for(ask_source.QUICKLY, migration, options.max_downtime, by_hand=not chosen)
        if not end and chosen:
            raise OutOfOrder(stage=NAME, missing=f"{name} runs on {migration.peer} again",
                             next=next_commands.command("resume", migration))
        if not end:
            return ask_source.give_up(migration)
        if chosen:
            settling.go_on(migration, end)
        return restore_here.carry_out(migration, options.max_downtime, end)


def _forced(migration: Migration, given: str, limit: float, *, off: bool) -> Result:
    """Let it run here without the word of the source, which is lost for good; raises what `force.let_run` raises."""
    if not force.let_run(migration, given, lambda: ask_source.ask(ask_source.QUICKLY, migration), off=off):
        return ask_source.give_up(migration)
    end = boot_clock.now() + limit
    if settling.stands_stopped(migration) or stopped_here.is_stopped(migration):
        settling.go_on(migration, end)
    return restore_here.carry_out(migration, limit, end, forced=True)
