# SPDX-License-Identifier: GPL-2.0-or-later
"""A rollback from its beginning, for both commands that ask for one: `rollback` and `abort`."""

from __future__ import annotations

from migrator.base.result import Result
from migrator.config import container_config
from migrator.copies import older_journal
from migrator.errors.containers import AlreadyRuns
from migrator.record import next_commands
from migrator.record.decisions import Verdict, decide
from migrator.record.states import Role
from stages.steps import abandon, force, give_back, prologue
from stages.steps.options import EndOptions


def run(options: EndOptions) -> Result:
    name, connect = options.container.name, options.connect
    with prologue.working_on(options.container) as journal:
        came = journal.latest(name, options.container.lxcpath)
        if came and came.role is Role.DESTINATION and not came.ended:
            return abandon.give_up_here(came, dry_run=options.dry_run)
        migration = prologue.leaving(journal, options.container, "rollback")
        where = options.destination or migration.peer
        elsewhere = where != migration.peer
        if not options.dry_run:
            older_journal.bring_up(migration)
        decision = decide("rollback", migration.state)
        if decision.verdict is Verdict.ALREADY:
            if not options.dry_run:  # it may have been renamed meanwhile
                container_config.unfence(migration.lxcpath / name, migration.id)
            if told := force.tell_late(migration, lambda: give_back.tell_over(connect, where, migration),
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
            gone = options.force == migration.id

            def tell(host: str) -> str:
                return give_back.tell_over(connect, host, migration, gone=gone)

            return force.roll_back(migration, options.force, lambda: tell(where), off=options.machine_is_off,
                                   recorded=(lambda: tell(migration.peer)) if elsewhere else None)
        return give_back.roll_back(migration, lambda: give_back.tell_over(connect, where, migration))
