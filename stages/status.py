# SPDX-License-Identifier: GPL-2.0-or-later
"""Show the migrations that this host takes or took part in: where each stands, who owns it, and what comes next."""

from __future__ import annotations

import argparse
import dataclasses
import time

from migrator.base import printable
from migrator.base.figures import duration, size, table
from migrator.base.result import Result
from migrator.copies import after_crash, bases
from migrator.errors.containers import NoMigration
from migrator.record import container_lock, next_commands
from migrator.record.container_lock import Holder
from migrator.record.journal import DEFAULT_PATH, Journal, Migration
from stages.steps import arguments, migration_status

NAME = "status"
HELP = "show the migrations of this host"


@dataclasses.dataclass(frozen=True)
class StatusOptions:
    name: str = ""  # "" for every container
    all: bool = False
    events: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_container(parser, required=False)
    parser.add_argument("-a", "--all", action="store_true", help="include those that have ended")
    parser.add_argument("--events", action="store_true", help="list every step that was taken, and when")


def options(args: argparse.Namespace) -> StatusOptions:
    return StatusOptions(arguments.name_of(args), args.all, args.events)


def run(options: StatusOptions) -> Result:
    arguments.require_root(NAME)
    name = options.name or None
    with Journal(DEFAULT_PATH) as journal:
        known = journal.all(name)
        found = [m for m in known if options.all or name or not m.ended]
        if name and not found:
            raise NoMigration(name=name, stage=NAME, next=f"migrator prepare-data {name} -d HOST")
        workers = {m.id: None if m.ended else container_lock.of(m.name, m.lxcpath) for m in found}
        described = [migration_status.describe(m, events=options.events, worker=workers[m.id]) for m in found]
        kept = [(m, path) for m in known if m.ended for path in bases.paths(m)]
        text = _text(found, workers, events=options.events) or "No migration is in progress."
        if not name:
            told = (bases.note, after_crash.aside_note, after_crash.in_use_note)
            notes = [note(m) for m in known if m not in found for note in told]
            text = "\n\n".join([text, *filter(None, notes)])
        return Result({"migrations": described, "kept": [
            {"name": m.name, "lxcpath": str(m.lxcpath), "migration": m.id, "path": str(path),
             "peer": next_commands.other_host(m)} for m, path in kept]}, text)


def _text(found: list[Migration], workers: dict[str, Holder | None], *, events: bool) -> str:
    if not found:
        return ""
    rows = []
    for migration in found:
        worker = workers[migration.id]
        data = migration_status.describe(migration, events=False, worker=worker)
        arrow = "to" if migration.role == "source" else "from"
        rows.append([
            migration.name, migration.id, f"{arrow} {next_commands.moved_to(migration)}", migration.state,
            migration.owner, duration(time.time() - migration.created), size(sum(data["bytes"].values())),
            migration_status.now(migration, worker) if worker else "-", data["next"] or "-",
        ])
    text = table(["NAME", "ID", "MOVES", "STATE", "OWNER", "AGE", "SIZE", "NOW", "NEXT"], rows)
    for migration in found:
        if told := after_crash.note(migration):
            text += f"\n\n{migration.name} {migration.id}: {told}"
    if events:
        for migration in found:
            text += f"\n\n{migration.name} {migration.id}"
            for event in migration.events():
                at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.time))
                reason = "" if event.told.reason is None else f"  {printable.line(event.told.reason)}"
                text += f"\n  {at}.{int(event.time % 1 * 1000):03d}  {event.phase:6}  {event.step}{reason}"
    return text
