# SPDX-License-Identifier: GPL-2.0-or-later
"""How every stage begins: the journal, the lock on the container, its migration, and whether it is the stage's turn."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from migrator.base.result import Result
from migrator.errors.containers import AlreadyMigrating, NoMigration, OutOfOrder
from migrator.errors.this_host import Busy
from migrator.record import next_commands
from migrator.record.decisions import Decision, Verdict, decide
from migrator.record.journal import DEFAULT_PATH, Journal, Migration
from migrator.record.migration_paths import locked
from migrator.record.next_commands import this_host
from migrator.record.states import Role, State
from stages.steps.options import NamedContainer


@contextlib.contextmanager
def working_on(container: NamedContainer) -> Iterator[Journal]:
    """Open the journal and keep other migrator commands off the container; raises Busy."""
    with Journal(DEFAULT_PATH) as journal, locked(container.name, lxcpath=container.lxcpath):
        yield journal


@contextlib.contextmanager
def locked_for(journal: Journal, name: str, lxcpath: Path) -> Iterator[None]:
    """As `locked`; a second request is told which migration is in progress."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(name, lxcpath=lxcpath))
        except Busy as error:
            found = journal.latest(name, lxcpath)
            if found is None or found.ended:
                raise
            raise AlreadyMigrating(name=name, peer=next_commands.other_host(found),
                                   id=found.id, next=next_commands.command("status", found),
                                   path=next_commands.path(found)) from error
        yield


def leaving(journal: Journal, container: NamedContainer, stage: str, destination: str = "HOST") -> Migration:
    """The newest migration of a container from this host; raises NoMigration."""
    migration = journal.latest(container.name, container.lxcpath, Role.SOURCE)
    if migration is None:
        raise NoMigration(name=container.name, stage=stage,
                          next=f"migrator prepare-data {container.name} -d {destination}")
    return migration


def arrived(journal: Journal, container: NamedContainer, stage: str) -> Migration:
    """The migration of a container to this host, if that is its newest; raises NoMigration.

    OutOfOrder if it is on its way from here: the record of an earlier stay would be taken for this move's.
    """
    name = container.name
    migration = journal.latest(name, container.lxcpath)
    if migration and migration.role is Role.SOURCE and not migration.ended:
        raise OutOfOrder(stage=stage, missing=f"this host is the source of {name}",
                         next=next_commands.again(f"{stage}@destination", migration))
    if migration is None or migration.role is Role.SOURCE:
        raise NoMigration(name=name, stage=stage, next=f"migrator prepare-data {name} -d {this_host()}   (on its host)")
    return migration


def require_turn(stage: str, migration: Migration, there: State | None = None) -> Decision:
    """The decision of `decide` to go, or that it was done already; raises OutOfOrder if it refuses."""
    decision = decide(stage, migration.state, there)
    if decision.verdict is Verdict.REFUSE:
        raise out_of_order(stage, migration, decision)
    return decision


def already(stage: str, migration: Migration, text: str, next_: str) -> Result:
    """The result of a stage that was done before; `next_` is the command that comes next, "" if there is none."""
    return Result({"migration": migration.id, "name": migration.name, "stage": stage, "already": True, "next": next_},
                  text + (f" Next: {next_}" if next_ else ""))


def out_of_order(stage: str, migration: Migration, decision: Decision) -> OutOfOrder:
    """The error that says what is missing for the stage and which command comes before it."""
    return OutOfOrder(stage=stage, missing=decision.missing, next=next_command(migration, decision))


def next_command(migration: Migration, decision: Decision) -> str:
    """The command that a decision names, "" if it names none."""
    return next_commands.command(decision.next_stage, migration) if decision.next_stage else ""
