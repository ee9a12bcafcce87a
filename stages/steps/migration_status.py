# SPDX-License-Identifier: GPL-2.0-or-later
"""A migration of this host, as `status` and `wait` show it."""

from __future__ import annotations

from typing import Any

from migrator.base.figures import size
from migrator.copies import after_crash
from migrator.record import next_commands
from migrator.record.container_lock import Holder
from migrator.record.journal import Migration
from migrator.record.migration_paths import Layout


def describe(migration: Migration, *, events: bool, worker: Holder | None) -> dict[str, Any]:
    """One migration as `--json` shows it: Unix times in seconds, sizes in bytes. `worker` is working on it now."""
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
    """What was sent, as far as this host knows, and what is in its spool; bytes."""
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
    layout = Layout.of(migration)
    for folder in (layout.spool, layout.images()):
        if folder and folder.is_dir():
            found["spool"] += sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    return found


def step_under_way(migration: Migration) -> str | None:
    """The step that began last and has not ended."""
    begun: list[str] = []
    for event in migration.events():
        if event.phase == "begin":
            begun.append(event.step)
        elif event.step in begun:
            begun.remove(event.step)
    return begun[-1] if begun else None


def line(migration: Migration, worker: Holder | None, *, volatile: bool = True) -> str:
    """How a migration stands, in a line: `web 0badc0de: preparing (migrate, process 12, send, 5.0 MiB of 9.1 MiB)`.

    Without `volatile`, the line only changes when state, step or process do.
    """
    return f"{migration.name} {migration.id}: {migration.state} ({now(migration, worker, volatile=volatile)})"


def now(migration: Migration, worker: Holder | None, *, volatile: bool = True) -> str:
    """Who is working on a migration, at what, and how far that is."""
    if worker is None:
        return "no command is working on it"
    words = [worker.command, f"process {worker.pid}"]
    if step := step_under_way(migration):
        words.append(step)
    if volatile and worker.progress:
        total = worker.progress["total"]
        words.append(size(worker.progress["bytes"]) + (f" of about {size(total)}" if total else ""))
    return ", ".join(words)
