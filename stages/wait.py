# SPDX-License-Identifier: GPL-2.0-or-later
"""Wait until the migration of a container has ended, or until no command is working on it any more.

Each change of state is reported on stderr. The exit status is 0 if the container has moved, 33 if the migration was
rolled back, 32 if it was interrupted, and 17 if --timeout expired first.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time

from migrator.base import log
from migrator.base.result import Result
from migrator.errors.containers import NoMigration
from migrator.errors.jobs import BrokenOff, RolledBack
from migrator.errors.this_host import StillUnderWay
from migrator.record import container_lock, next_commands
from migrator.record.container_lock import Holder
from migrator.record.journal import DEFAULT_PATH, Journal, Migration
from migrator.record.states import Role, State
from stages.steps import arguments, migration_status
from stages.steps.options import NamedContainer

NAME = "wait"
HELP = "wait until a migration has ended"

POLL = 0.1  # seconds
# Seconds with nobody at work after which a migration counts as interrupted: a source may have lost its connection and
# come back over a new one.
GRACE = {Role.SOURCE: 1.0, Role.DESTINATION: 10.0}
BEGINS = {"migrate", "prepare-data", "serve", "?"}  # commands that hold a container before a migration is recorded


@dataclasses.dataclass(frozen=True)
class WaitOptions:
    container: NamedContainer
    timeout: float = math.inf  # seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_container(parser)
    parser.add_argument("--timeout", metavar="SECONDS", type=arguments.positive, default=math.inf,
                        help="wait at most SECONDS (default: forever)")


def options(args: argparse.Namespace) -> WaitOptions:
    return WaitOptions(arguments.container(args), args.timeout)


def run(options: WaitOptions) -> Result:
    arguments.require_root(NAME)
    name, lxcpath = options.container.name, options.container.lxcpath
    end = time.monotonic() + options.timeout
    earlier = ""  # a migration that had ended before the one we wait for began
    seen = time.monotonic()  # when someone was last seen at work, or when this began
    told = ""
    with Journal(DEFAULT_PATH) as journal:
        while True:
            now = time.monotonic()
            # Before the journal, which then includes what that process wrote last.
            worker = container_lock.of(name, lxcpath)
            migration = journal.latest(name, lxcpath)
            if migration and migration.ended:
                if worker and worker.command in BEGINS and _comes_after(worker, migration):
                    earlier = migration.id
                if migration.id != earlier:
                    return _outcome(migration)
            current = migration if migration and migration.id != earlier else None
            if worker:
                seen = now
            elif now - seen > (GRACE[current.role] if current else 0):
                raise _nobody(name, current)
            if current and (line := migration_status.line(current, worker, volatile=False)) != told:
                told = line
                _tell(current, worker, line)
            if now > end:
                raise StillUnderWay(name=name, pid=worker.pid if worker else "?",
                                    command=worker.command if worker else "?", seconds=f"{options.timeout:g}")
            time.sleep(min(POLL, max(0.0, end - now)))


def _comes_after(worker: Holder, migration: Migration) -> bool:
    """Whether a process at work came after a migration had ended, and so may be about to begin another one.

    Whoever ends one holds the lock: so a different process that held it before the journal was read, and still does,
    got it from that one.
    """
    if migration.was_ended_by(worker.process):
        return False
    still = container_lock.of(migration.name, migration.lxcpath)
    return still is not None and still.process == worker.process


def _tell(migration: Migration, worker: Holder | None, line: str) -> None:
    if log.level >= log.Level.NORMAL:
        log.say("state", line, **migration_status.describe(migration, events=False, worker=worker))


def _outcome(migration: Migration) -> Result:
    """The outcome of a migration that has ended."""
    host = next_commands.other_host(migration)
    if migration.state is not State.FINISHED:
        raise RolledBack(name=migration.name, id=migration.id,
                         source=next_commands.this_host() if migration.role is Role.SOURCE else host,
                         next=next_commands.command("migrate@source", migration))
    where = f"to {next_commands.moved_to(migration)}" if migration.role is Role.SOURCE else f"here from {host}"
    return Result({"migration": migration.id, "name": migration.name, "state": migration.state},
                  f"{migration.name} has moved {where}.")


def _nobody(name: str, migration: Migration | None) -> NoMigration | BrokenOff:
    if migration is None:
        return NoMigration(name=name, stage=NAME, next=f"migrator migrate {name} -d HOST")
    return BrokenOff(name=name, id=migration.id, state=migration.state, next=next_commands.next_command(migration),
                     rollback=next_commands.command("rollback@source", migration))
