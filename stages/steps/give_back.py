# SPDX-License-Identifier: GPL-2.0-or-later
"""The source's half of a rollback: the destination records that it never runs the attempt, then the container goes on.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from migrator.base import log, printable
from migrator.base.result import Result, of_dry_run
from migrator.config import container_config
from migrator.copies import after_crash, bases, no_memory, origins, remains, resume_rules
from migrator.errors import Interrupted, MigratorError
from migrator.errors.containers import AlreadyRuns, NotKnownThere, RunsUnrecorded
from migrator.errors.documented import DocumentedError
from migrator.errors.memory import StartFailed
from migrator.errors.outcomes import SourceStateUnknown, SourceStillStopped, outcome
from migrator.errors.this_host import CommandTimeout, JournalBroken
from migrator.guest import live_steps
from migrator.host import btrfs, network
from migrator.record import container_lock, next_commands
from migrator.record.journal import Migration
from migrator.record.migration_paths import Layout
from migrator.record.next_commands import this_host
from migrator.record.states import Event, Owner, State
from migrator.record.transactions import is_busy
from migrator.remote.destination import ConnectOptions
from migrator.remote.other_host import connected
from migrator.transfer.messages import Abandon
from migrator.transfer.rpc import Connection
from stages.steps import abandon, thaw_again

ABANDON_LIMIT = 600.0  # seconds: the destination first settles a restore that was killed, and removes snapshots


def tell_over(connect: ConnectOptions, where: str, migration: Migration, *, gone: bool = False) -> str:
    """`tell`, over a connection of its own."""
    with contextlib.ExitStack() as heard, connected(connect, where) as there:
        kept = tell(migration, there, gone=gone)
        # The destination has answered: a container frozen here does not wait for more.
        heard.enter_context(container_lock.held_back(raised=False))
        return kept


def tell(migration: Migration, there: Connection, *, gone: bool = False) -> str:
    """Have the destination record that it will never run this attempt; raises AlreadyRuns if it does.

    GoneThere if it ran there and was removed; with `gone`, by force or because it runs here again, that is recorded
    there as well. Returns the uuid of the snapshot that both hosts have and that it keeps, "" if there is none. Raises
    NotKnownThere if another host answers, or one that has lost its journal: its word lets nothing run.
    """
    held: list[str] = []
    with contextlib.suppress(MigratorError, OSError):  # a base is not worth keeping a container frozen for
        held = bases.held(Layout.of(migration), own=True)
    answer = there.call_within(ABANDON_LIMIT, Abandon(
        id=migration.id, name=migration.other_name, source_name=migration.name,
        lxcpath=migration.begun.destination_lxcpath, source_host=this_host(), held=tuple(held),
        gone=gone or migration.state is State.ROLLED_BACK))
    if not resume_rules.gives_back(migration.ticket, known=answer.known is True, offered=offered(migration),
                                   answered=answer.ticket):
        error = NotKnownThere(destination=there.peer_host, id=migration.id, name=migration.name, peer=migration.peer)
        # The host it was sent to, by the name that host gave itself then, and not one that knows an earlier migration.
        unheard_of, same = answer.known is False, there.peer_host == migration.begun.destination_host
        error.forgotten, error.another = unheard_of and same, unheard_of and not same
        raise error
    return answer.kept


def offered(migration: Migration) -> bool:
    """Whether the token may be with the destination, as far as is known here."""
    return migration.owner is not Owner.SOURCE


def roll_back(migration: Migration, tell: Callable[[], str] | None) -> Result:
    """Have the destination give the token back for good (`tell`), thaw, and clean up.

    Without `tell` that is forced: the destination is lost. If it is on record that it was told, or forced, it is not
    told again.
    """
    name = migration.name
    forced = tell is None or migration.ending.forced
    left_there = ""
    interrupted: Interrupted | None = None
    kept = list(migration.copy.kept)
    thawed, given_back = _give_back_first(migration)
    bases.require_last_copy(migration)
    if tell and not forced and not migration.ending.abandoned:
        try:
            uuid = tell()
        except DocumentedError as error:  # including the tunnel's
            lives_in_it = isinstance(error, RunsUnrecorded) and not offered(migration)
            if isinstance(error, AlreadyRuns) and not lives_in_it:
                raise
            if offered(migration):
                raise outcome(SourceStateUnknown, memory=migration.memory)(
                    error, name=name, destination=migration.peer, rollback=next_commands.command("rollback", migration),
                    path=next_commands.path(migration),
                ) from error
            if isinstance(error, Interrupted):
                if not after_crash.held(migration):
                    raise  # it runs, and nothing has been done
                interrupted = error
            why = (f"keeps what has arrived, as something other than {name} itself lives in it:"
                   f" {error.fields.get('how')}" if lives_in_it else f"could not be told ({error})")
            left_there = f" {migration.peer} {printable.line(why)}. {after_crash.tell_later(migration)}"
            kept = bases.acknowledged(migration)
        else:
            kept = bases.named(migration, uuid)
    told = not left_there and not forced
    record = {"abandoned": told, "forced": forced, "held": not given_back and after_crash.held(migration), "kept": kept,
              **({"gone": True} if thawed and not origins.is_there(migration) else {})}
    busy = full = False  # could not be recorded
    with container_lock.held_back():
        try:
            with contextlib.nullcontext() if forced else migration.journal.hurried():
                migration.move(Event.ROLL_BACK, **record)
        except JournalBroken as error:
            if forced:  # the destination may come back and must then be told
                raise
            full = not (busy := is_busy(error))
            log.warning(f"{name} is resumed before that is recorded: {error}")
        # To let it start; but if the container is gone there may be no other copy.
        makes_room = not (given_back or busy or remains.first_is_here(migration)) and origins.is_there(migration)
        if makes_room:
            origins.remember(migration)
            with contextlib.suppress(MigratorError, OSError):
                drop_attempt(migration, [] if full else kept)
        try:
            if not given_back:  # only once: someone who stops or freezes it afterwards means it
                thawed = thaw_again.thaw_source(migration)
        except (SourceStillStopped, StartFailed, CommandTimeout):
            if makes_room and kept and not full:  # all that is left for the next attempt
                with contextlib.suppress(MigratorError, OSError):
                    migration.note("kept", kept=[])
                    drop_attempt(migration, [])
            raise
    if interrupted:
        raise interrupted
    if busy:
        migration.move(Event.ROLL_BACK, **record)
    if full:
        kept = record["kept"] = []  # space is what is lacking
    gone = (thawed or record["held"] or migration.copy.gone) and not origins.is_there(migration)
    last = bases.last_copy(migration, runs=thawed) if gone else []
    bases.require_last_copy(migration)  # again, because it can have gone while the other host was asked
    if not thawed:
        _require_fence_seen(migration)
    drop_attempt(migration, [*kept, *last])  # this may make room for records
    if full:
        migration.move(Event.ROLL_BACK, **record)
    container_config.unfence(migration.lxcpath / name, migration.id)
    if told and kept:
        bases.supersede(migration)
    # What may be the last copy is not a base any more: the next container of that name might have dropped it.
    migration.move(Event.ROLLED_BACK, **(
        {"kept": [each for each in kept if each not in last], "last_copy": last} if last else {}))
    if migration.memory and not thawed:  # a dump that was killed right before the freeze
        live_steps.put_back_in(name, migration.lxcpath)
    kept_here = [str(path) for path in bases.paths(migration)]
    text = f" {bases.note(migration)}" if kept_here else ""
    return Result({"migration": migration.id, "name": name, "stage": "rollback", "already": False, "thawed": thawed,
                   "destination_told": told, "forced": forced, "kept": kept_here},
                  f"{after_crash.where(migration)}{left_there}{text}")


def _give_back_first(migration: Migration) -> tuple[bool, bool]:
    """In `dumping` nobody else has a say, and the other host may take its time to answer.

    Returns whether it was thawed or started again, as `thaw_source` does, and whether that is settled. If it cannot be
    started, because of a full disk say, or is gone, this is tried again when it is known what is to be kept.
    """
    if migration.state is not State.DUMPING:
        return False, False
    with container_lock.held_back():
        if migration.memory and remains.first_is_here(migration):
            thawed = given_back = thaw_again.thaw_source(migration)
        else:
            try:
                thawed, given_back = thaw_again.thaw_source(migration), origins.is_there(migration)
            except (MigratorError, OSError) as error:
                log.warning(f"Telling {migration.peer} first: {error}")
                return False, False
        if given_back and migration.memory:  # it is to come up again with its host, whatever ends this program now
            with contextlib.suppress(OSError):
                container_config.unfence(migration.lxcpath / migration.name, migration.id)
        return thawed, given_back


def _require_fence_seen(migration: Migration) -> None:
    """Raise DiskAway if its fence may be on a disk that is not there: nobody would remove it any more."""
    still = migration.still
    # Of these, older versions recorded only the last.
    stood_still = any(each is not None for each in (still.boot, still.init, still.pid))
    config = Layout.of(migration).container / "config"
    if stood_still and not remains.first_is_here(migration) and not os.path.lexists(config):
        bases.require_seen(migration)


def drop_attempt(migration: Migration, kept: list[str]) -> None:
    """Remove what this migration made on the source, except what it keeps; bases of earlier ones stay."""
    layout = Layout.of(migration)
    layout.drop_images()
    for path in layout.own_snapshots():
        if path.name not in kept:
            btrfs.delete(path)
    layout.drop_spool()
    layout.tidy()


def described(migration: Migration) -> Result:
    """For --dry-run."""
    commands: list[tuple[str, list[str]]] = []
    if not migration.memory and migration.still.stopping:
        commands.append((this_host(), no_memory.start_command(migration.name, migration.lxcpath, None)))
    elif migration.memory and migration.still.cgroup and thaw_again.may_be_frozen(migration):
        if migration.still.ports:
            commands.append((this_host(), network.hear_command(migration.id)))
        commands.append((this_host(), ["tee", f"{migration.still.cgroup}/cgroup.freeze"]))
    return of_dry_run([*commands, *abandon.deletions(migration, bases.acknowledged(migration)[-1:])])
