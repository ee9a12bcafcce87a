# SPDX-License-Identifier: GPL-2.0-or-later
"""Stop the migration of a container from another terminal, and let the container keep running here.

The command that works on it is asked to stop, as by Ctrl-C; if it was suspended with Ctrl-Z, it is continued for that.
This command waits until it has ended and then, if anything is left to undo, rolls back as `migrator rollback` would. It
is safe to run it again, even while it waits. A container that already runs on the destination is not called back: the
exit status is then 29.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from migrator.base import log
from migrator.base.result import Result
from migrator.copies import after_crash
from migrator.criu import criu_dump
from migrator.errors.containers import AlreadyRuns
from migrator.errors.jobs import AbortElsewhere
from migrator.errors.this_host import Busy, JournalBroken, StillUnderWay
from migrator.record import container_lock, next_commands
from migrator.record.container_lock import Holder
from migrator.record.journal import DEFAULT_PATH, Journal, Migration
from migrator.record.states import Owner, Role, State
from migrator.record.transactions import HURRY, is_busy
from stages.steps import arguments, roll_back
from stages.steps.options import EndOptions

NAME = "abort"
HELP = "stop a migration in progress (on the source)"

ASKED = {"migrate", "resume", "prepare-data", "create-dump"}  # these are asked to stop; others end soon anyway
LIMIT = criu_dump.DUMP_LIMIT + 60.0  # seconds: nothing interrupts CRIU while it dumps


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_container(parser)
    arguments.add_destination(parser, required=False)


def options(args: argparse.Namespace) -> EndOptions:
    return EndOptions(arguments.container(args), args.destination, arguments.connect(args))


def run(options: EndOptions) -> Result:
    arguments.require_root(NAME)
    name, lxcpath = options.container.name, options.container.lxcpath
    end = time.monotonic() + LIMIT
    _let_go_of_journal(name, lxcpath)
    with Journal(DEFAULT_PATH) as journal:
        before = journal.latest(name, lxcpath)
        stopped: Holder | None = None
        while True:
            if worker := _worker(journal, name, lxcpath):
                stopped = stopped or worker
                _stop(name, worker, end)
                continue
            migration = journal.latest(name, lxcpath)
            if migration is None or migration.ended:
                return _ended(name, migration, before, stopped)
            if migration.role is Role.DESTINATION and migration.owner is Owner.DESTINATION:
                raise _elsewhere(migration)
            try:
                done = roll_back.run(options)
            except Busy:  # someone was quicker; perhaps another abort
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)
                continue
            return Result(done.data | {"stage": NAME, "stopped": stopped.to_json() if stopped else None}, done.text)


def _let_go_of_journal(name: str, lxcpath: Path) -> None:
    """Get a stopped process to let go of the journal.

    Whoever is working on the container may have been stopped just as it had the journal open exclusively, because the
    disk is full, say: then nobody can read the journal to learn what is asked until that process is continued.
    """
    try:
        Journal(DEFAULT_PATH, HURRY).close()
    except JournalBroken as error:
        worker = container_lock.of(name, lxcpath) if is_busy(error) else None
        if worker and worker.command in ASKED:  # `_stop` would continue it anyway
            log.verbose(f"The journal is in use: {worker.command} (process {worker.pid}) continues if it was suspended")
            container_lock.go_on(worker)


def _worker(journal: Journal, name: str, lxcpath: Path) -> Holder | None:
    """Who is working on this container here; raises AbortElsewhere if that is on behalf of a source."""
    worker = container_lock.of(name, lxcpath)
    if worker is None:
        return None
    migration = journal.latest(name, lxcpath)
    if migration and not migration.ended and migration.role is Role.DESTINATION:
        raise _elsewhere(migration)
    # A process that answers another host does nothing that could be given up: its work has just ended, is just
    # beginning, or is to answer a question about a container that is leaving. It may stay for long but lets go of the
    # lock.
    return None if worker.command == container_lock.SERVE else worker


def _elsewhere(migration: Migration) -> AbortElsewhere:
    return AbortElsewhere(name=migration.name, source=migration.peer,
                          next=next_commands.command(f"{NAME}@source", migration))


def _stop(name: str, worker: Holder, end: float) -> None:
    if worker.command in ASKED:
        log.info(f"Stopping {worker.command} (process {worker.pid}), which is working on {name}")
        container_lock.ask_to_stop(name, worker)
    if not container_lock.has_ended(worker, max(0.0, end - time.monotonic())):
        raise StillUnderWay(name=name, pid=worker.pid, command=worker.command, seconds=f"{LIMIT:g}")


def _ended(name: str, migration: Migration | None, before: Migration | None, stopped: Holder | None) -> Result:
    """The outcome if nothing is left to undo; raises AlreadyRuns if it was too late."""
    new = migration if migration and not (before and before.ended and before.id == migration.id) else None
    data: dict[str, Any] = {
        "migration": new.id if new else None, "name": name, "stage": NAME, "already": stopped is None,
        "stopped": stopped.to_json() if stopped else None,
    }
    if stopped is None:
        return Result(data, f"No migration of {name} is in progress.")
    if new is None:
        return Result(data, f"{stopped.command} was stopped before it had begun a migration of {name}.")
    if new.state is State.FINISHED:
        raise AlreadyRuns(name=name, destination=next_commands.other_host(new),
                          next=next_commands.command("status", new))
    there = "" if new.ending.abandoned else (
        f" {new.peer} could not be told. {after_crash.tell_later(new)}")
    return Result(data, f"{stopped.command} was stopped, and has rolled back. {after_crash.where(new)}{there}")
