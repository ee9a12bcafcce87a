# SPDX-License-Identifier: GPL-2.0-or-later
"""The source's half of create-dump: the container is frozen or stopped, the rest is sent, and the token is offered."""

from __future__ import annotations

from migrator.base import log
from migrator.base.result import Result
from migrator.config import container_config
from migrator.copies import bases, leave, standing
from migrator.errors.containers import ContainerChanged, ContainerNotRunning
from migrator.host import btrfs, lxc
from migrator.record import container_lock, next_commands
from migrator.record.decisions import Verdict, decide
from migrator.record.journal import Migration
from migrator.record.migration_paths import Layout
from migrator.record.states import Event, State
from migrator.remote.other_host import require_stable_path
from migrator.transfer.rpc import Connection
from stages.steps import ask_state, examine, offer, prologue, thaw_again
from stages.steps.dump import Dump
from stages.steps.handover import Handover
from stages.steps.options import MoveRequest, StandstillOptions
from stages.steps.reconnect import Link
from stages.steps.standstill import Standstill
from stages.steps.stop import Stop

STAGE = "create-dump"


def carry_out(request: MoveRequest, options: StandstillOptions, migration: Migration, container: lxc.Container,
              there: Connection, *, link: Link | None = None, dry_run: bool = False) -> Result:
    """The stage, over an existing connection; `heal` has been called before if an earlier one was killed.

    In a move in one go, `link` can make new connections.
    """
    with offer.undecided(migration):
        state_there = ask_state.state(there, migration)
    decision = decide(STAGE, migration.state, state_there)
    next_ = prologue.next_command(migration, decision)
    if not dry_run:
        with offer.undecided(migration):
            offer.settle(migration, state_there)
    if decision.verdict is Verdict.REFUSE:
        raise prologue.out_of_order(STAGE, migration, decision)
    if migration.state is State.OFFERED and not dry_run:
        with offer.undecided(migration):
            standing.require(migration, STAGE, next_commands.anew(migration) if link else "")
            migration.note("leave", leave=leave.given(migration.handover.leave, leave.BY_HAND))
        offer.make(migration, there)
        next_ = next_commands.next_command(migration)
    if offer.settled(migration, state_there) is State.DUMPED:
        return prologue.already(STAGE, migration, f"{migration.name} has already been dumped and handed over.", next_)
    bases.refuse_another(migration, STAGE)
    looked = examine.before_stage(request, options.ignore, container, there, known_copy=True,
                                  bridges=migration.begun.bridges, memory=migration.memory)
    bases.refuse_another_disk(migration, STAGE)
    _refuse_changed(migration, container)
    if migration.state is not State.DUMPING:  # --dry-run of what an earlier one left frozen
        require_running(container)
    standstill = Standstill(options, migration, container, there, link)
    way = way_of(standstill, looked)
    if dry_run:
        return way.described()
    require_stable_path(there)
    return Handover(standstill, way).run()


def way_of(standstill: Standstill, looked: examine.Look) -> Dump | Stop:
    """How this container is handed over: with its memory or without."""
    return Dump(standstill, looked) if standstill.migration.memory else Stop(standstill)


def heal(migration: Migration) -> None:
    """An earlier create-dump was killed before it offered the token: the container is ours, and we start over.

    A first Ctrl-C has to wait until the container runs: one that was told to shut down, to be started again, would
    otherwise stay stopped.
    """
    log.warning(f"An earlier create-dump of {migration.name} was killed; the container is first thawed or "
                "started again")
    with container_lock.held_back():
        # It may take days before someone carries on.
        left = offer.drop_here(migration, runs=thaw_again.thaw_source(migration))
        container_config.unfence(migration.lxcpath / migration.name, migration.id)
        migration.move(Event.THAW, **left)


def require_running(container: lxc.Container) -> None:
    """A container that is frozen by now was frozen by someone else, and a move does not thaw it."""
    if (state := container.state) != "RUNNING":
        raise ContainerNotRunning(name=container.name, lxcpath=container.lxcpath, state=state)


def _refuse_changed(migration: Migration, container: lxc.Container) -> None:
    config = container_config.read(container.config_file, container.name)
    if config.digest != migration.data.config_digest:
        next_ = next_commands.command("prepare-data", migration)
        raise ContainerChanged(name=container.name, reason="its configuration is different", next=next_)
    base = Layout(container.lxcpath, container.name, migration.id).snapshot(len(migration.data.rounds))
    if not btrfs.is_subvolume(base):
        next_ = next_commands.command("rollback", migration)
        raise ContainerChanged(name=container.name, reason=f"the snapshot {base} is gone", next=next_)
