# SPDX-License-Identifier: GPL-2.0-or-later
"""End a successful migration: the source's frozen copy is ended, kept on disk, and fenced against being started.

First the destination must confirm that the container runs there. The copy loses its network before its processes
end, so that none of its connections is reset. Its root file system is kept until `migrator cleanup`.
"""

from __future__ import annotations

import argparse

from migrator.base.result import Result
from migrator.copies import older_journal, standing
from migrator.errors.containers import OutOfOrder
from migrator.record import next_commands
from migrator.record.journal import Migration
from migrator.record.states import Role, State
from migrator.remote.other_host import connected
from stages.steps import arguments, ask_source, end_copy, finish_here, force, prologue
from stages.steps.options import EndOptions

NAME = "finish"
HELP = "stop and fence the copy that was left behind (on the source)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_container(parser)
    arguments.add_destination(parser, required=False)
    arguments.add_force(
        parser, force="without the other host: on the destination, if the source is lost for good; on the source, if"
                      " the destination has forgotten it, or its journal does not say that it runs there. Leave out the"
                      " migration's ID to see what that means",
        off="with --force ID, on the destination: you have made sure that the source is off and stays off; needed if"
            " another host answers under its name")
    arguments.add_dry_run(parser)


def options(args: argparse.Namespace) -> EndOptions:
    return arguments.ending(args)


# --- on the source --------------------------------------------------------------------------------------------


def run(options: EndOptions) -> Result:
    arguments.require_root(NAME)
    name = options.container.name
    with prologue.working_on(options.container) as journal:
        came = journal.latest(name, options.container.lxcpath)
        if came and came.role is Role.DESTINATION and not came.ended:
            return _on_destination(options, came)
        migration = prologue.leaving(journal, options.container, NAME)
        if migration.state is State.FINISHED:
            return Result(
                {"migration": migration.id, "name": name, "stage": NAME, "already": True, "stopped_there": ""},
                f"The migration of {name} has already been finished.")
        if not options.dry_run:
            older_journal.bring_up(migration)
            standing.restore_silence(migration)
        with connected(options.connect, options.destination or migration.peer) as there:
            return end_copy.carry_out(migration, there, force=options.force, dry_run=options.dry_run)


# --- on the destination ---------------------------------------------------------------------------------------


def _on_destination(options: EndOptions, migration: Migration) -> Result:
    """Typed on the destination: the source ends its own copy, unless it is lost for good."""
    if options.force is None or options.dry_run:
        raise OutOfOrder(stage=NAME, missing="the copy that was left behind is on the source",
                         next=next_commands.command("finish@source", migration))
    asking = ask_source.Asking(options.connect, options.destination)
    return force.finish_alone(migration, options.force, lambda: ask_source.ask(asking, migration),
                              off=options.machine_is_off)


HANDLERS = finish_here.HANDLERS
