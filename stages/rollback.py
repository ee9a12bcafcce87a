# SPDX-License-Identifier: GPL-2.0-or-later
"""Give up a migration: the container keeps running on the source as if nothing had happened.

The destination first records, for good, that it will never let this attempt run; then the source thaws the container,
and both hosts remove what the attempt has left on them. Without an answer from the destination the source thaws only
if the container was never handed over. Once the container runs on the destination, the only way back is a new move.
"""

from __future__ import annotations

import argparse

from migrator.base.result import Result, of_dry_run
from migrator.config import container_config
from migrator.copies import bases, no_memory, older_journal
from migrator.errors.containers import AlreadyRuns, NoMigration
from migrator.host import network
from migrator.record import next_commands
from migrator.record.decisions import Verdict, decide
from migrator.record.journal import DEFAULT_PATH, Journal, Migration
from migrator.record.migration_paths import locked
from migrator.record.next_commands import this_host
from migrator.record.states import Role
from stages.steps import abandon, arguments, force, give_back, thaw_again
from stages.steps.options import EndOptions

NAME = "rollback"
HELP = "give up a migration and let the container keep running"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_container(parser)
    arguments.add_destination(parser, required=False)
    parser.add_argument("--force", metavar="ID", nargs="?", const="",
                        help="without asking the destination, if that host is lost for good. Leave out the migration's"
                             " ID to see what that risks")
    parser.add_argument("--machine-is-off", action="store_true",
                        help="with --force ID: you have made sure that the destination is off and stays off; needed if"
                             " that cannot be seen from here, as behind a jump host, with a peer, or when another"
                             " host answers under its name")
    arguments.add_dry_run(parser)


def options(args: argparse.Namespace) -> EndOptions:
    return EndOptions(arguments.container(args), args.destination, arguments.connect(args), args.force,
                      args.machine_is_off, args.dry_run)


# --- on the source --------------------------------------------------------------------------------------------


def run(options: EndOptions) -> Result:
    arguments.require_root(NAME)
    name, lxcpath, connect = options.container.name, options.container.lxcpath, options.connect
    with Journal(DEFAULT_PATH) as journal, locked(name, lxcpath=lxcpath):
        migration = journal.latest(name, lxcpath)
        if migration and migration.role is Role.DESTINATION and not migration.ended:
            return abandon.give_up_here(migration, dry_run=options.dry_run)
        migration = journal.latest(name, lxcpath, Role.SOURCE)
        if migration is None:
            raise NoMigration(name=name, stage=NAME, next=f"migrator prepare-data {name} -d HOST")
        source, where = migration, options.destination or migration.peer
        elsewhere = where != migration.peer
        if not options.dry_run:
            older_journal.bring_up(migration)
        decision = decide(NAME, migration.state)
        if decision.verdict is Verdict.ALREADY:
            if not options.dry_run:  # it may have been renamed meanwhile
                container_config.unfence(migration.lxcpath / name, migration.id)
            if told := force.tell_late(migration, lambda: give_back.tell_over(connect, where, source),
                                       elsewhere=elsewhere):
                return told
            return Result({"migration": migration.id, "name": name, "stage": NAME, "already": True},
                          f"{name} has already been rolled back.")
        if decision.verdict is Verdict.REFUSE:
            host = next_commands.other_host(migration)
            raise AlreadyRuns(name=name, destination=host,
                              next=next_commands.next_command(migration) or next_commands.command("status", migration))
        if options.dry_run:
            return described(migration)
        if options.force is not None:
            gone = options.force == source.id
            sent_to = (lambda: give_back.tell_over(connect, source.peer, source, gone=gone)) if elsewhere else None
            return force.roll_back(
                migration, options.force, lambda: give_back.tell_over(connect, where, source, gone=gone),
                recorded=sent_to, off=options.machine_is_off)
        return give_back.roll_back(migration, lambda: give_back.tell_over(connect, where, source))


def described(migration: Migration) -> Result:
    """For --dry-run."""
    commands: list[tuple[str, list[str]]] = []
    if not migration.memory and migration.still.stopping:
        commands.append((this_host(), no_memory.start_command(migration.name, migration.lxcpath, None)))
    elif migration.memory and migration.still.cgroup and thaw_again.may_be_frozen(migration):
        if migration.still.ports:
            commands.append((this_host(), network.hear_command(migration.id)))
        commands.append((this_host(), ["tee", f"{migration.still.cgroup}/cgroup.freeze"]))
    return of_dry_run([*commands, *abandon.deletions(migration, bases.acknowledged(migration)[-1:])])


HANDLERS = abandon.HANDLERS
