# SPDX-License-Identifier: GPL-2.0-or-later
"""Show the migrations that this host takes or took part in: where each stands, who owns it, and what comes next."""

from __future__ import annotations

import argparse
import dataclasses
import time
from typing import Any

from migrator.base import printable
from migrator.base.figures import duration, size, table
from migrator.base.result import Result
from migrator.copies import after_crash, bases
from migrator.errors.containers import NoMigration
from migrator.record import container_lock, next_commands
from migrator.record.container_lock import Holder
from migrator.record.journal import DEFAULT_PATH, Journal, Migration
from migrator.record.migration_paths import Layout
from stages.steps import arguments

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
        described = [describe(m, events=options.events, worker=workers[m.id]) for m in found]
        kept = [(m, path) for m in known if m.ended for path in bases.paths(m)]
        text = _text(found, workers, events=options.events) or "No migration is in progress."
        if not name:
            told = (bases.note, after_crash.aside_note, after_crash.in_use_note)
            notes = [note(m) for m in known if m not in found for note in told]
            text = "\n\n".join([text, *filter(None, notes)])
        return Result({"migrations": described, "kept": [
            {"name": m.name, "lxcpath": str(m.lxcpath), "migration": m.id, "path": str(path),
             "peer": next_commands.other_host(m)} for m, path in kept]}, text)


def describe(migration: Migration, *, events: bool, worker: Holder | None) -> dict[str, Any]:
    """One migration as `--json` shows it; times in seconds since 1970, sizes in bytes. `worker` works on it now."""
    data: dict[str, Any] = {
        "id": migration.id, "name": migration.name, "lxcpath": str(migration.lxcpath), "role": migration.role,
        "peer": next_commands.other_host(migration), "state": migration.state,
        "peer_name": migration.other_name, "owner": migration.owner, "memory": migration.memory,
        "created": migration.created, "updated": migration.updated,
        "bytes": sizes(migration), "next": after_crash.next_command(migration), "note": after_crash.note(migration),
        "working": worker.to_json() | {"step": step_under_way(migration)} if worker else None,
    }
    times = {"frozen_at": migration.still.frozen_at, "stopped_at": migration.still.stopped_at,
             "restored_at": migration.arrived.restored_at}
    data |= {key: at for key, at in times.items() if at is not None}
    if events:
        data["events"] = [{"time": e.time, "step": e.step, "phase": e.phase, **e.detail} for e in migration.events()]
    return data


def sizes(migration: Migration) -> dict[str, int]:
    """What was sent, as far as this host knows, and what lies in its spool: bytes."""
    rounds = migration.data.rounds
    found = {
        "full": sum(each.bytes or 0 for each in rounds if each.full),
        "increment": sum(each.bytes or 0 for each in rounds if not each.full),
        "memory": 0,
        "spool": 0,
    }
    figures = migration.handover.figures
    found["increment"] += figures.increment
    found["memory"] = figures.memory
    layout = Layout(migration.lxcpath, migration.name, migration.id)
    for folder in (layout.spool, layout.images()):
        if folder and folder.is_dir():
            found["spool"] += sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    return found


def step_under_way(migration: Migration) -> str | None:
    """The step that has begun last and not ended."""
    begun: list[str] = []
    for event in migration.events():
        if event.phase == "begin":
            begun.append(event.step)
        elif event.step in begun:
            begun.remove(event.step)
    return begun[-1] if begun else None


def line(migration: Migration, worker: Holder | None, *, volatile: bool = True) -> str:
    """Where a migration stands, in a line: `web 0badc0de: preparing (migrate, process 12, send, 5.0 MiB of 9.1 MiB)`.

    Without `volatile` it is the same as long as state, step and process are.
    """
    return f"{migration.name} {migration.id}: {migration.state} ({now(migration, worker, volatile=volatile)})"


def now(migration: Migration, worker: Holder | None, *, volatile: bool = True) -> str:
    """Who works on a migration, at what, and how far that is."""
    if worker is None:
        return "no command is working on it"
    words = [worker.command, f"process {worker.pid}"]
    if step := step_under_way(migration):
        words.append(step)
    if volatile and worker.progress:
        total = worker.progress["total"]
        words.append(size(worker.progress["bytes"]) + (f" of about {size(total)}" if total else ""))
    return ", ".join(words)


def _text(found: list[Migration], workers: dict[str, Holder | None], *, events: bool) -> str:
    if not found:
        return ""
    rows = []
    for migration in found:
        worker = workers[migration.id]
        data = describe(migration, events=False, worker=worker)
        arrow = "to" if migration.role == "source" else "from"
        rows.append([
            migration.name, migration.id, f"{arrow} {next_commands.moved_to(migration)}", migration.state,
            migration.owner, duration(time.time() - migration.created), size(sum(data["bytes"].values())),
            now(migration, worker) if worker else "-", data["next"] or "-",
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
