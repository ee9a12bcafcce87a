# SPDX-License-Identifier: GPL-2.0-or-later
"""Send a full copy of a running container's disk, or what has changed since the last round.

A read-only snapshot is made while the container keeps running, and sent to the destination's spool. If an earlier copy
is already there (from an imported round, or because the container has been on that host before), only the difference
is sent. Next comes `migrator import-data` on the destination.
"""

from __future__ import annotations

import argparse
import dataclasses
import secrets
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import UNSET

from migrator.base import log
from migrator.base.figures import size
from migrator.base.result import Result, of_dry_run
from migrator.config import container_config
from migrator.copies import after_crash, bases, origins
from migrator.errors import Interrupted, MigratorError, UsageError
from migrator.errors.connection import NotAllowed
from migrator.errors.containers import AlreadyMigrating, ContainerNotRunning, OutOfOrder
from migrator.errors.documented import DocumentedError
from migrator.host import btrfs, lxc
from migrator.record import lxc_disk, next_commands
from migrator.record.decisions import Verdict, decide
from migrator.record.detail import DiskRound
from migrator.record.journal import DEFAULT_PATH, AlreadyRecorded, Journal, Migration
from migrator.record.migration_paths import Layout, locked
from migrator.record.next_commands import this_host
from migrator.record.states import FROZEN, Event, Role, State
from migrator.remote import destination
from migrator.remote.answering import Handlers, Place, Receivers, Service, keep_config
from migrator.remote.other_host import connected, fingerprint
from migrator.transfer import room_bounds, sender, spool
from migrator.transfer.messages import (
    AskLxcPath,
    AskState,
    AskSubvolumes,
    Begin,
    Begun,
    DiskTransfer,
    Done,
    LxcPath,
    MigrationState,
    RoundReceived,
    Subvolumes,
)
from migrator.transfer.progress import Progress
from migrator.transfer.rpc import Connection
from stages import check
from stages.steps import arguments, ask_state, room, same_host
from stages.steps.options import MoveOptions, MoveRequest

NAME = "prepare-data"
HELP = "send the disk of a running container (on the source)"


@dataclasses.dataclass(frozen=True)
class PrepareDataOptions:
    request: MoveRequest
    bwlimit: int | None = None  # bytes a second
    ignore: tuple[str, ...] = ()
    dry_run: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_container(parser)
    arguments.add_destination(parser)
    add_place(parser)
    arguments.add_map_bridge(parser)
    parser.add_argument("--bwlimit", metavar="RATE", type=rate, help="send at most RATE bytes a second (k, M, G)")
    check.add_no_memory(parser)
    check.add_ignore(parser)
    arguments.add_dry_run(parser)


def add_place(parser: argparse.ArgumentParser) -> None:
    """What the container's place on the destination is called."""
    parser.add_argument("--destination-lxcpath", metavar="PATH", help="where the destination keeps its containers")
    parser.add_argument("--new-name", metavar="NEW", help="name of the container on the destination; its own host"
                        " name changes only when it is restarted")


def rate(text: str) -> int:
    """Bytes a second with an optional k, M or G (of 1024), for argparse."""
    factor = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}.get(text[-1:].lower(), 1)
    value = float(text.rstrip("kKmMgG")) * factor
    if not 1 <= value < 1 << 50:
        raise argparse.ArgumentTypeError("must be above zero")
    return int(value)


def options(args: argparse.Namespace) -> PrepareDataOptions:
    return PrepareDataOptions(arguments.request(args), args.bwlimit, tuple(args.ignore), args.dry_run)


# --- on the source --------------------------------------------------------------------------------------------


def run(options: PrepareDataOptions) -> Result:
    arguments.require_root(NAME)
    request = options.request
    name, lxcpath = request.container.name, request.container.lxcpath
    container = lxc.Container(name, lxcpath)
    with Journal(DEFAULT_PATH) as journal, locked(name, lxcpath=lxcpath):
        migration = unfinished(journal, name, lxcpath, request.destination)
        if migration and migration.state in FROZEN:  # it stands still for that: it is not for anybody to let it run
            raise OutOfOrder(stage=NAME, missing=decide(NAME, migration.state).missing,
                             next=after_crash.next_command(migration))
        if container.state != "RUNNING":
            raise ContainerNotRunning(name=name, lxcpath=lxcpath, state=container.state)
        with connected(request.connect, request.destination) as there:
            if migration:
                decision = decide(NAME, migration.state, ask_state.state(there, migration))
                if decision.verdict is Verdict.ALREADY:
                    return _already(migration, decision.next_stage)
                if decision.verdict is Verdict.REFUSE:
                    next_ = next_commands.command(decision.next_stage, migration)
                    raise OutOfOrder(stage=NAME, missing=decision.missing, next=next_)
            checked = check.before_stage(request, options.ignore, container, there, full=True,
                                         known_copy=migration is not None, memory=with_memory(request, migration))
            return carry_out(request, journal, migration, container, there, checked.disk_bytes,
                             bwlimit=options.bwlimit, dry_run=options.dry_run)


def carry_out(request: MoveRequest, journal: Journal, migration: Migration | None, container: lxc.Container,
              there: Connection, disk_bytes: int, *, bwlimit: int | None = None, move: MoveOptions | None = None,
              dry_run: bool = False) -> Result:
    """A round, after the preflight; it begins the migration where there is none.

    In a `move` in one go, the destination imports and restores over the same connection.
    """
    if migration and not dry_run:
        bases.refuse_another(migration, NAME)
        bases.refuse_another_disk(migration, NAME)
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
    """Whether the memory moves along: --no-memory is given now, or was before."""
    return not request.no_memory and (migration is None or migration.memory)


def choose(request: MoveRequest, migration: Migration) -> None:
    """Record --no-memory in a migration that has begun without; the destination learns it with the next request."""
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
    """Record the migration here, then there. One that the destination refuses at once has never been."""
    if migration:
        return migration, there.call(asks)
    migration = journal.create(
        id=asks.id, role=Role.SOURCE, name=asks.source_name, lxcpath=Path(asks.source_lxcpath),
        peer=request.destination, event=Event.SEND, destination_host=there.peer_host, other_name=asks.name,
        destination_fingerprint=fingerprint(there), origin=asks.origin, source_lxcpath=asks.source_lxcpath,
        destination_lxcpath=asks.lxcpath, lxcpath_given=request.container.given_lxcpath is not None,
        bridges=asks.bridges, rounds=[], one_shot=asks.one_shot, memory=asks.memory,
        options=move.to_json() if move else {},
    )
    try:
        reply = there.call(asks)
    except MigratorError as error:  # Ctrl-C is none: it may have been recorded there
        if isinstance(error, NotAllowed) or _has_never_heard(there, migration):
            journal.forget(migration)
        raise
    _settle_bases(migration, reply.subvolumes)
    return migration, reply


def _has_never_heard(there: Connection, migration: Migration) -> bool:
    """Whether the destination, which has answered with an error, says that it has not recorded the migration."""
    try:
        return ask_state.ask(there, migration.id).state is None
    except Interrupted:
        raise
    except DocumentedError:
        return False


def _settle_bases(migration: Migration, there: Sequence[str]) -> None:
    """What is not of use any more is worth no migration that has begun: what resists goes with the next one."""
    try:
        bases.settle(migration, there)
    except (MigratorError, OSError) as error:
        log.warning(f"Something that earlier attempts have kept could not be removed: {error}")


def unfinished(journal: Journal, name: str, lxcpath: Path, where: str) -> Migration | None:
    """The migration that this call goes on with, if there is one."""
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
        for leftover in layout.own_snapshots()[len(rounds):]:  # of a round that was killed while it began
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
        {"migration": migration.id, "name": migration.name, "stage": NAME, "already": False, "round": number,
         "full": parent_path is None, "bytes": sent.raw_bytes, "wire_bytes": sent.wire_bytes,
         "resumed_bytes": sent.resumed_bytes, "seconds": round(sent.seconds, 3), "next": next_},
        f"Sent {size(sent.raw_bytes)} ({'the whole disk' if parent_path is None else 'an increment'}) "
        f"in {sent.seconds:.1f} s. Next: {next_}",
    )


def _already(migration: Migration, next_stage: str) -> Result:
    next_ = next_commands.command(next_stage, migration)
    return Result(
        {"migration": migration.id, "name": migration.name, "stage": NAME, "already": True, "next": next_},
        f"The data of {migration.name} has already been sent and is waiting to be imported. Next: {next_}",
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
    """In which LXC path the container is going to be there; raises InvalidName where it answers none. It is written
    into commands, and nothing that it may answer shall end up among what this host says.
    """
    return str(Path(there.call(AskLxcPath(lxcpath=wanted)).lxcpath))


# --- on the destination ---------------------------------------------------------------------------------------


def begin(service: Service, asked: Begin) -> Begun:
    """A migration begins, or its next round does: check that there is a place for it and say what is here already."""
    layout = Layout(service.lxcpath(asked.lxcpath), asked.name, asked.id)
    source_name = asked.source_name or asked.name
    origin = service.origin(asked.origin or asked.id, service.known(asked.id))
    service.grant.check_config(asked.name, asked.config, asked.mapped_root)
    _refuse_others(service, layout, service.known(asked.id), source_name, origin)  # before others are kept off it
    with service.locking(layout.name, layout.lxcpath):
        migration = _recorded(service, layout, asked, source_name, origin)
    layout.make_folder()
    layout.spool.mkdir(mode=0o700, exist_ok=True)
    keep_config(layout, asked, includes=service.grant.hooks)
    return Begun(state=migration.state, disk_bytes=asked.disk_bytes,
                 subvolumes=tuple(room.bases_for(service, layout, origin)), ticket=migration.ticket)


def _destination(text: str) -> str:
    """What the source has called this host, which its commands name; raises DestinationInvalid where it cannot have."""
    destination.parse(text)
    return text  # as it was typed there


def _is_named(service: Service, asked: Begin) -> bool:
    """Whether commands for this host are to name the LXC path: also where one was chosen for a caller who may use but
    that, which need not be this host's own.
    """
    return asked.lxcpath_given or bool(service.grant.lxcpaths)


def _recorded(service: Service, layout: Layout, asked: Begin, source_name: str, origin: str) -> Migration:
    """The migration's record, made if it begins; with the container locked. Raises DiskAway."""
    migration = service.known(asked.id)
    _refuse_others(service, layout, migration, source_name, origin)
    if migration:
        room.require_disk(migration, layout)
        room.check(service, layout, asked, origin)
        service.note_consent(migration)
        before = migration.data.announced
        if before is not None and asked.disk_bytes > room_bounds.TIMES * before:
            migration.note("announced", announced=asked.disk_bytes)  # it grows and grows, and not for ever
        return migration
    service.refuse_new()
    room.check(service, layout, asked, origin)
    try:
        migration = service.journal.create(
            id=layout.id, role=Role.DESTINATION, name=layout.name, lxcpath=layout.lxcpath,
            peer=service.grant.source(asked.source_host), event=Event.RECEIVE,
            destination=_destination(asked.destination), other_name=source_name, origin=origin,
            moves=None if asked.moves is UNSET else list(asked.moves[-origins.MOVES_MAX:]),
            source_lxcpath=str(Path(asked.source_lxcpath)), destination_lxcpath=str(layout.lxcpath),
            lxcpath_given=_is_named(service, asked), rounds=[], mapped_root=asked.mapped_root,
            one_shot=asked.one_shot, memory=asked.memory,
            caller=service.grant.caller, hooks=service.grant.hooks, hooks_fix=service.grant.hooks_fix,
            ticket=secrets.token_hex(16), announced=asked.disk_bytes, disk=lxc_disk.of(layout.lxcpath),
        )
    except AlreadyRecorded:  # given up before it had begun, at this very moment
        raise _has_ended(layout.id) from None
    _settle_bases(migration, asked.held[:bases.HELD_MAX])
    return migration


def _has_ended(id_: str) -> UsageError:
    return UsageError(reason=f"migration {id_} has ended on this host")


def _refuse_others(service: Service, layout: Layout, migration: Migration | None, source_name: str,
                   origin: str) -> None:
    """Raises where what is there, or under way there, is not what comes.

    ContainerExists: of who is not root a name alone proves nothing. UsageError where the migration has ended, or is of
    another place; NotAllowed or AlreadyMigrating where it begins, and another one of that container is under way.
    """
    if migration and (migration.name, migration.lxcpath) != (layout.name, layout.lxcpath):
        raise UsageError(reason=f"migration {layout.id} brings {migration.name} to {migration.lxcpath}, nothing else")
    renamed = source_name != layout.name or service.grant.restricted
    origins.refuse_foreign(service.journal, layout, origin, renamed=renamed)
    if migration and (migration.ended or migration.state is State.ABANDONING):
        raise _has_ended(layout.id)
    current = service.journal.latest(layout.name, layout.lxcpath)
    if not migration and current and not current.ended:
        if not service.grant.owns(current) and service.grant.restricted:
            raise service.grant.refusal(f"{layout.name} is already being moved here from elsewhere")
        raise AlreadyMigrating(name=layout.name, peer=current.peer, id=current.id,
                               next=next_commands.next_command(current), path=next_commands.path(current))


def receive_disk(service: Service, asked: DiskTransfer) -> Place:
    """Where a round's stream goes, and that it must be on disk before it is acknowledged."""
    migration, number = service.migration(asked.id), asked.round
    rounds = migration.data.rounds
    if not 1 <= number <= len(rounds) + 1 or len(rounds) > 1000:
        raise UsageError(reason=f"round {number} does not follow round {len(rounds)}")
    service.refuse_data(migration)
    here = Layout(migration.lxcpath, migration.name, migration.id)
    room.require(migration, here)
    migration.move(Event.RECEIVE)
    file = here.spool / f"disk-{number}"
    held = service.disk_bounds(migration)
    if service.end_behind():
        room.regain(here, number, held.leave)
    behind = service.import_behind(file, here.snapshot(number)) if asked.behind else None
    return Place(here.spool, True, {file.name}.__contains__, behind, held)


def received(service: Service, asked: RoundReceived) -> Done:
    """All of a round has arrived; remember which subvolume it must become."""
    migration, number = service.migration(asked.id), asked.round
    layout = Layout(migration.lxcpath, migration.name, migration.id)
    if not spool.is_complete(layout.spool / f"disk-{number}"):
        raise UsageError(reason=f"round {number} is not complete")
    rounds = [*migration.data.rounds[: number - 1], DiskRound(uuid=asked.uuid)]
    migration.move(Event.RECEIVED, rounds=rounds)
    return Done(state=migration.state)


def state(service: Service, asked: AskState) -> MigrationState:
    """What this host knows of a migration, and whether it still has what a restore needs."""
    migration = service.known(asked.id)
    if migration is None:
        return MigrationState(state=None, images=False)
    return MigrationState(state=migration.state, owner=migration.owner, ticket=migration.ticket,
                          images=after_crash.can_be_restored(migration))


def subvolumes(service: Service, asked: AskSubvolumes) -> Subvolumes:
    """The uuids of what increments of a container can start from here."""
    layout = Layout(service.lxcpath(asked.lxcpath), asked.name, "00000000")
    return Subvolumes(subvolumes=tuple(room.bases_for(service, layout, service.origin(asked.origin))))


def lxcpath_(service: Service, asked: AskLxcPath) -> LxcPath:
    """Where this host keeps its containers, unless the source names another place."""
    return LxcPath(lxcpath=str(service.lxcpath(asked.lxcpath)))


HANDLERS: Handlers = {
    Begin: begin,
    RoundReceived: received,
    AskState: state,
    AskSubvolumes: subvolumes,
    AskLxcPath: lxcpath_,
}
RECEIVERS: Receivers = {DiskTransfer: receive_disk}
