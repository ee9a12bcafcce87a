# SPDX-License-Identifier: GPL-2.0-or-later
"""The source's half of prepare-data: send a snapshot of the disk, or what has changed since the last one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from migrator.base import log
from migrator.base.figures import size
from migrator.base.result import Result, of_dry_run
from migrator.config import container_config
from migrator.copies import after_crash, bases, origins
from migrator.errors import Interrupted, MigratorError
from migrator.errors.connection import NotAllowed
from migrator.errors.containers import AlreadyMigrating
from migrator.errors.documented import DocumentedError
from migrator.host import btrfs, lxc
from migrator.record import next_commands
from migrator.record.detail import DiskRound, Options
from migrator.record.journal import Journal, Migration
from migrator.record.migration_paths import Layout
from migrator.record.next_commands import this_host
from migrator.record.states import Event, Role, State
from migrator.remote.other_host import fingerprint
from migrator.transfer import sender
from migrator.transfer.messages import AskLxcPath, AskSubvolumes, Begin, Begun, DiskTransfer, RoundReceived
from migrator.transfer.progress import Progress
from migrator.transfer.rpc import Connection
from stages.steps import ask_state, same_host
from stages.steps.options import MoveOptions, MoveRequest

STAGE = "prepare-data"


def carry_out(request: MoveRequest, journal: Journal, migration: Migration | None, container: lxc.Container,
              there: Connection, disk_bytes: int, *, bwlimit: int | None = None, move: MoveOptions | None = None,
              dry_run: bool = False) -> Result:
    """A round, after the preflight; begins the migration if there is none.

    In a `move` in one go, the destination imports and restores over the same connection.
    """
    if migration and not dry_run:
        bases.refuse_another(migration, STAGE)
        bases.refuse_another_disk(migration, STAGE)
        same_host.require(request.destination, migration, there, ask_state.ask(there, migration.id))
        choose(request, migration)
    config = container_config.read(container.config_file, container.name)
    wanted = migration.begun.destination_lxcpath if migration else request.target.lxcpath
    id_ = migration.id if migration else journal.unused_id()
    origin = origins.origin(journal, container.name, container.lxcpath) or id_
    layout = Layout(container.lxcpath, container.name, id_)
    asks = Begin(
        id=id_,
        name=origins.name_there(request.target.new_name, migration, container.name),
        source_name=container.name,
        origin=origin,
        moves=tuple(origins.moves(origins.brought(journal, container.name, container.lxcpath))),
        lxcpath=lxcpath_there(there, wanted),
        lxcpath_given=request.target.lxcpath is not None,
        source_host=this_host(),
        source_lxcpath=str(container.lxcpath),
        destination=request.destination,
        config=config.text,
        includes=config.includes,
        bridges=migration.begun.bridges if migration else dict(request.target.bridges),
        disk_bytes=disk_bytes,
        mapped_root=container.mapped_root,
        one_shot=move is not None,
        memory=with_memory(request, migration),
        held=tuple(bases.held(layout)),
        usable=tuple(bases.usable(journal, layout, origin, container.rootfs)),
    )
    if dry_run:
        done = sum(each.bytes is not None for each in migration.data.rounds) if migration else 0
        return _dry_run(container, there, asks, done + 1)
    migration, reply = _begin(request, move, journal, migration, there, asks)
    return _send_round(migration, container, there, reply, asks.usable or (), config.digest, one_shot=move is not None,
                       bwlimit=bwlimit)


def with_memory(request: MoveRequest, migration: Migration | None) -> bool:
    """Whether the memory moves along: not if --no-memory is given, now or earlier."""
    return not request.no_memory and (migration is None or migration.memory)


def choose(request: MoveRequest, migration: Migration) -> None:
    """Record --no-memory in a migration that began without it; the destination learns it with the next request."""
    if request.no_memory and migration.memory:
        if migration.state in (State.PREPARING, State.PREPARED):
            migration.note("no-memory", memory=False)
        else:
            log.warning(f"it is too late for --no-memory: the memory of {migration.name} has been dumped, and moves "
                        "along")


def _begin(
    request: MoveRequest, move: MoveOptions | None, journal: Journal, migration: Migration | None, there: Connection,
    asks: Begin,
) -> tuple[Migration, Begun]:
    """Record the migration here, then there. If the destination refuses at once, the record here is removed again."""
    if migration:
        return migration, there.call(asks)
    migration = journal.create(
        id=asks.id, role=Role.SOURCE, name=asks.source_name, lxcpath=Path(asks.source_lxcpath),
        peer=request.destination, event=Event.SEND, destination_host=there.peer_host, other_name=asks.name,
        destination_fingerprint=fingerprint(there), origin=asks.origin, source_lxcpath=asks.source_lxcpath,
        destination_lxcpath=asks.lxcpath, lxcpath_given=request.container.given_lxcpath is not None,
        bridges=asks.bridges, rounds=[], one_shot=asks.one_shot, memory=asks.memory,
        options=move.record() if move else Options(),
    )
    try:
        reply = there.call(asks)
    except MigratorError as error:  # not Ctrl-C: it may have been recorded there by then
        if isinstance(error, NotAllowed) or _has_never_heard(there, migration):
            journal.forget(migration)
        raise
    settle_bases(migration, reply.subvolumes)
    return migration, reply


def _has_never_heard(there: Connection, migration: Migration) -> bool:
    """Whether the destination, having answered with an error, says that it has not recorded the migration."""
    try:
        return ask_state.ask(there, migration.id).state is None
    except Interrupted:
        raise
    except DocumentedError:
        return False


def settle_bases(migration: Migration, there: Sequence[str]) -> None:
    """Drop bases that are no longer of use; failing to must not stop a migration: they go with the next one."""
    try:
        bases.settle(migration, there)
    except (MigratorError, OSError) as error:
        log.warning(f"Something that earlier attempts have kept could not be removed: {error}")


def unfinished(journal: Journal, name: str, lxcpath: Path, where: str) -> Migration | None:
    """The migration that this call continues, if there is one."""
    migration = journal.latest(name, lxcpath)
    if migration is None or migration.ended:
        return None
    if migration.role is Role.DESTINATION or migration.peer != where:
        raise AlreadyMigrating(name=name, peer=migration.peer, id=migration.id,
                               next=after_crash.next_command(migration), path=next_commands.path(migration))
    return migration


def _send_round(
    migration: Migration, container: lxc.Container, there: Connection, reply: Begun, usable: Sequence[str],
    config_digest: str, *, one_shot: bool, bwlimit: int | None,
) -> Result:
    layout = Layout(container.lxcpath, container.name, migration.id)
    layout.make_folder()
    rounds = list(migration.data.rounds)
    if rounds and rounds[-1].bytes is None and rounds[-1].uuid and layout.snapshot(len(rounds)).is_dir():
        log.verbose(f"Going on with round {len(rounds)}, which was interrupted")
        migration.move(Event.SEND, ticket=reply.ticket)
    else:
        rounds = [each for each in rounds if each.bytes is not None]
        for leftover in layout.own_snapshots()[len(rounds):]:  # of a round that was killed as it began
            btrfs.delete(leftover)
        parent = bases.for_round(layout, reply.subvolumes, usable)
        rounds.append(DiskRound(parent=str(parent.path) if parent else ""))
        migration.move(Event.SEND, rounds=rounds, config_digest=config_digest, ticket=reply.ticket)
        with migration.step("snapshot"):
            made = btrfs.snapshot(container.rootfs, layout.snapshot(len(rounds)), read_only=True)
        rounds[-1] = msgspec.structs.replace(rounds[-1], uuid=made.uuid)
        migration.note("snapshotted", rounds=rounds)
    number, round_, snapshot = len(rounds), rounds[-1], layout.snapshot(len(rounds))
    parent_path = Path(round_.parent) if round_.parent else None
    log.info(f"Sending {'what has changed' if parent_path else 'the disk'} of {container.name} to {there.peer_host}"
             f" (migration {migration.id}, round {number})")
    with migration.step("send") as outcome, btrfs.send(snapshot, parent_path) as stream, \
            Progress("disk", 0 if parent_path else reply.disk_bytes) as progress:
        sent = sender.send_files(
            there, DiskTransfer(id=migration.id, round=number, behind=one_shot),
            [sender.SourceFile(f"disk-{number}", stream, None)],
            progress=progress.update, bytes_per_second=bwlimit,
        )
        sent.tell(outcome)
    there.call(RoundReceived(id=migration.id, round=number, uuid=round_.uuid))
    rounds[-1] = msgspec.structs.replace(
        round_, bytes=sent.raw_bytes, full=parent_path is None, seconds=round(sent.seconds, 3),
        wire_bytes=sent.wire_bytes)
    migration.move(Event.SENT, rounds=rounds)
    next_ = next_commands.next_command(migration)
    return Result(
        {"migration": migration.id, "name": migration.name, "stage": STAGE, "already": False, "round": number,
         "full": parent_path is None, "bytes": sent.raw_bytes, "wire_bytes": sent.wire_bytes,
         "resumed_bytes": sent.resumed_bytes, "seconds": round(sent.seconds, 3), "next": next_},
        f"Sent {size(sent.raw_bytes)} ({'the whole disk' if parent_path is None else 'an increment'}) "
        f"in {sent.seconds:.1f} s. Next: {next_}",
    )


def _dry_run(container: lxc.Container, there: Connection, asks: Begin, number: int) -> Result:
    layout, lxcpath = Layout(container.lxcpath, container.name, asks.id), asks.lxcpath or ""
    reply = there.call(AskSubvolumes(name=asks.name, lxcpath=lxcpath, origin=asks.origin))
    parent = bases.for_round(layout, reply.subvolumes, asks.usable or ())
    target = Layout(Path(lxcpath), asks.name, asks.id)
    return of_dry_run([
        (this_host(), btrfs.snapshot_command(container.rootfs, layout.snapshot(number), read_only=True)),
        (this_host(), btrfs.send_command(layout.snapshot(number), parent.path if parent else None)),
        (there.peer_host, ["tee", str(target.spool / f"disk-{number}")]),
    ])


def lxcpath_there(there: Connection, wanted: str | None) -> str:
    """The LXC path that the container will have there; raises InvalidName if the host does not answer with one.

    It is written into commands, and nothing that the host might answer may turn into something this host says.
    """
    return str(Path(there.call(AskLxcPath(lxcpath=wanted)).lxcpath))
