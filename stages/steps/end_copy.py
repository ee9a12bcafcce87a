# SPDX-License-Identifier: GPL-2.0-or-later
"""The source's half of a finish: the copy left behind is fenced and ended."""

from __future__ import annotations

import contextlib
from pathlib import Path

from migrator.base import log
from migrator.base.result import Result, of_dry_run
from migrator.config import container_config
from migrator.copies import bases, ending, older_journal, origins, remains, standing, written_since
from migrator.errors import MigratorError, UsageError
from migrator.errors.containers import NoMigration
from migrator.errors.convert import FIELD_MAX
from migrator.errors.memory import CopyNotEnded
from migrator.host import lxc, network
from migrator.record import next_commands
from migrator.record.decisions import Verdict, decide
from migrator.record.journal import Migration
from migrator.record.migration_paths import Layout
from migrator.record.states import Event, Owner, State
from migrator.transfer.messages import Finish, Running
from migrator.transfer.rpc import Connection
from stages.steps import ask_state, confirmed, offer, prologue, unrecorded

STAGE = "finish"
ANSWER_LIMIT = 600.0  # seconds: the destination may first have to start it, and removes snapshots


def carry_out(migration: Migration, there: Connection, *, force: str | None = None, dry_run: bool = False) -> Result:
    """The stage, over an existing connection."""
    name = migration.name
    state_there = ask_state.state(there, migration)
    if not dry_run:
        older_journal.bring_up(migration, state_there)
    decision = decide(STAGE, offer.settled(migration, state_there), state_there)
    if not dry_run:
        offer.settle(migration, state_there)
    refused = decision.verdict is Verdict.REFUSE
    older = state_there in unrecorded.OLDER and migration.owner is not Owner.SOURCE  # otherwise nothing was handed over
    if refused and (dry_run or not older):
        raise prologue.out_of_order(STAGE, migration, decision)
    if dry_run:
        return described(migration)
    try:
        known = confirmed.require(migration, there.peer_host, state_there, force,
                                  lambda: there.call_within(ANSWER_LIMIT, Running(id=migration.id)))
    except (NoMigration, UsageError) as error:
        if refused:
            raise prologue.out_of_order(STAGE, migration, decision) from error
        raise
    # First: anything that lxc-autostart has started before it ended is then seen.
    standing.refuse_autostart(migration, STAGE)
    standing.refuse_end(migration, STAGE)
    if migration.state is State.OFFERED:
        migration.move(Event.TAKEN)  # the answer that said so got lost
    migration.move(Event.FINISH)
    stop_and_fence(migration)
    stopped = there.call_within(ANSWER_LIMIT, Finish(id=migration.id)).stopped[:FIELD_MAX] if known else ""
    bases.prune(migration)
    migration.move(Event.FINISHED, **_last_change(migration))
    if stopped:
        log.warning(f"{name} has moved to {next_commands.moved_to(migration)}, but does not run there. "
                    f"{there.peer_host} says: {stopped}")
    return Result({"migration": migration.id, "name": name, "stage": STAGE, "already": False, "stopped_there": stopped},
                  f"{name} has moved to {next_commands.moved_to(migration)}."
                  f" Its root file system is kept here until: {next_commands.command('cleanup', migration)}")


def stop_and_fence(migration: Migration) -> None:
    """Fence first, then take the network away, then end the processes; safe to repeat.

    Raises CopyNotEnded.
    """
    folder = migration.lxcpath / migration.name
    with migration.step("fence"):
        if not (folder / "config").is_file():
            log.warning(f"{folder} no longer has a configuration: there is nothing to fence")
        elif origins.is_source(migration):
            container_config.fence(folder, container_config.text_of(folder / "config"), migration.id,
                                   standing.message(migration))
        else:
            log.warning(f"{folder} is now another container: it is left alone")
    with migration.step("stop"):
        _end_copy(migration)
    if migration.still.ports:
        network.hear(migration.id)
    Layout.of(migration).drop_images()


def _end_copy(migration: Migration) -> None:
    """End what was frozen, as identified by its cgroup; LXC calls it stopped when only its monitor has ended.

    Raises CopyNotEnded.
    """
    cgroup = Path(migration.still.cgroup)
    if remains.first_is_here(migration):  # without its memory it was stopped before
        if remains.is_shown(migration, origins.source_uuids(migration)):
            _unplug(migration)
            ending.kill(migration)
        else:
            log.warning(f"Nothing shows that what lives in {cgroup} is the halted copy of {migration.name}: it is left "
                        f"alone. If it is, end it with: echo 1 >{cgroup}/cgroup.kill")
    if remains.are_here(migration):
        raise CopyNotEnded(name=migration.name, place=cgroup, next=next_commands.command(STAGE, migration),
                           pids=",".join(map(str, lxc.processes(cgroup))))


def _unplug(migration: Migration) -> None:
    """Remove the veths of the copy that is frozen here. By their names alone they could be another container's."""
    if not migration.still.ports:
        return
    try:
        found = network.ports(migration.still.first[0])
        if remains.first_is_here(migration):  # otherwise its pid may be another process's by now
            network.remove(found)
    except (MigratorError, OSError) as error:  # nothing gets through them, and they go with its processes
        log.verbose(f"The network of {migration.name} is left in place until it ends: {error}")


def _last_change(migration: Migration) -> dict[str, int]:
    """What tells later whether anyone has written to the copy since. LXC's hooks at its end may have done so until now.
    """
    with contextlib.suppress(MigratorError, OSError):  # it may be removed at any moment and then tells nothing
        if origins.is_there(migration) and (
                found := written_since.changed(lxc.Container(migration.name, migration.lxcpath).rootfs)):
            return {"changed": found}
    return {}


def described(migration: Migration) -> Result:
    """For --dry-run."""
    here = next_commands.this_host()
    if not migration.memory or not migration.still.cgroup:  # of an older journal
        return of_dry_run([])
    return of_dry_run([
        *((here, ["ip", "link", "delete", port.outside]) for port in migration.still.ports),
        (here, ["tee", f"{migration.still.cgroup}/cgroup.kill"]),
        *([(here, network.hear_command(migration.id))] if migration.still.ports else []),
    ])
