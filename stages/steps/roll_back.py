# SPDX-License-Identifier: GPL-2.0-or-later
"""A rollback from its beginning, whoever asks for it: `rollback` itself, or `abort`."""

from __future__ import annotations

from migrator.base.result import Result
from migrator.config import container_config
from migrator.copies import older_journal
from migrator.errors.containers import AlreadyRuns, NoMigration
from migrator.record import next_commands
from migrator.record.decisions import Verdict, decide
from migrator.record.journal import DEFAULT_PATH, Journal
from migrator.record.migration_paths import locked
from migrator.record.states import Role
from stages.steps import abandon, force, give_back
from stages.steps.options import EndOptions


def run(options: EndOptions) -> Result:
    name, lxcpath, connect = options.container.name, options.container.lxcpath, options.connect
    with Journal(DEFAULT_PATH) as journal, locked(name, lxcpath=lxcpath):
        migration = journal.latest(name, lxcpath)
        if migration and migration.role is Role.DESTINATION and not migration.ended:
            return abandon.give_up_here(migration, dry_run=options.dry_run)
        migration = journal.latest(name, lxcpath, Role.SOURCE)
        if migration is None:
            raise NoMigration(name=name, stage="rollback", next=f"migrator prepare-data {name} -d HOST")
        source, where = migration, options.destination or migration.peer
        elsewhere = where != migration.peer
        if not options.dry_run:
            older_journal.bring_up(migration)
        decision = decide("rollback", migration.state)
        if decision.verdict is Verdict.ALREADY:
            if not options.dry_run:  # it may have been renamed meanwhile
                container_config.unfence(migration.lxcpath / name, migration.id)
            if told := force.tell_late(migration, lambda: give_back.tell_over(connect, where, source),
                                       elsewhere=elsewhere):
                return told
            return Result({"migration": migration.id, "name": name, "stage": "rollback", "already": True},
                          f"{name} has already been rolled back.")
        if decision.verdict is Verdict.REFUSE:
            host = next_commands.other_host(migration)
            raise AlreadyRuns(name=name, destination=host,
                              next=next_commands.next_command(migration) or next_commands.command("status", migration))
        if options.dry_run:
            return give_back.described(migration)
        if options.force is not None:
            gone = options.force == source.id
            sent_to = (lambda: give_back.tell_over(connect, source.peer, source, gone=gone)) if elsewhere else None
            return force.roll_back(
                migration, options.force, lambda: give_back.tell_over(connect, where, source, gone=gone),
                recorded=sent_to, off=options.machine_is_off)
        return give_back.roll_back(migration, lambda: give_back.tell_over(connect, where, source))
