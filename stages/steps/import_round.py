# SPDX-License-Identifier: GPL-2.0-or-later
"""What has arrived of the disk becomes a subvolume, and with the first round a container, stopped and fenced."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from migrator.base import log
from migrator.base.result import Result, of_dry_run
from migrator.config import seccomp_profile
from migrator.copies import origins
from migrator.copies.origins import Whose
from migrator.errors.containers import ContainerExists
from migrator.errors.data import ReceiveFailed, SegmentDamaged
from migrator.errors.documented import DocumentedError
from migrator.host import btrfs
from migrator.record import grant, next_commands
from migrator.record.journal import Migration
from migrator.record.migration_paths import Layout, put
from migrator.record.next_commands import this_host
from migrator.record.states import Event, State
from migrator.remote.answering import kept_config
from migrator.transfer import received_snapshot, room_bounds, spool
from migrator.transfer.live_import import Behind
from stages.steps import arriving_config, put_away, room

STAGE = "import-data"
REACHING_MAX = 2000  # characters kept of the description of what reaches out of the container


def described(migration: Migration) -> Result:
    """For --dry-run."""
    layout = Layout.of(migration)
    return of_dry_run([(this_host(), btrfs.receive_command(layout.folder))])


def import_round(migration: Migration, layout: Layout, behind: Behind | None = None) -> Result:
    """Receive the newest round and define the container. Safe to repeat after being killed at any point.

    What `behind` received during the transfer is not received again.
    """
    number = len(migration.data.rounds)
    migration.move(Event.IMPORT)
    log.info(f"Importing round {number} of {migration.name} (migration {migration.id})")
    file = layout.spool / f"disk-{number}"
    try:
        made = receive(migration, layout, file, number, migration.data.rounds[-1].uuid, behind)
    except (SegmentDamaged, ReceiveFailed):
        spool.drop(file)
        migration.move(Event.RECEIVE)  # it must be sent again
        raise
    with migration.step("define"):
        reaching = define(migration, layout)
    # `btrfs receive` does not sync; the spooled copy is about to go, and the last snapshot should be quick.
    btrfs.sync(layout.folder)
    migration.move(Event.IMPORTED, reaching=reaching[:REACHING_MAX], on_disk_uuid=made.uuid)
    spool.drop(file)
    next_ = next_commands.next_command(migration)
    return Result({"migration": migration.id, "name": migration.name, "stage": STAGE, "already": False,
                   "round": number, "next": next_},
                  f"{migration.name} is defined here and stopped. Next: {next_}")


def receive(migration: Migration, layout: Layout, file: Path, number: int, uuid: str,
            behind: Behind | None = None, left: Callable[[], float] = lambda: btrfs.STREAM_LIMIT) -> btrfs.Subvolume:
    """Receive one spooled stream as the snapshot of round `number`, whose uuid on the source is `uuid`.

    `left` returns how many seconds that may still take. If a stream turns out to be damaged or cannot be received, it
    must be sent again; the migration's state then says so.
    """
    target = layout.snapshot(number)
    with migration.step("receive"):
        try:
            if layout.began_formerly():
                raise ReceiveFailed(path=target, reason="an older version of migrator has received it, and kept it in "
                                    "a different place")
            if not (behind and behind.brought(target, left())):
                leave = room_bounds.for_caller(layout.lxcpath, migration.caller)
                if migration.state is State.IMPORTING:  # otherwise a container is frozen and waits for it
                    leave = max(leave, room_bounds.MARGIN)
                    room.regain(layout, number, leave)
                received_snapshot.receive(spool.verified(file), target, layout.spool, limit=left(), leave=leave)
            found = btrfs.info(target)
            if found.received_uuid != uuid:
                raise ReceiveFailed(path=target, reason=f"it arrived as {found.received_uuid or 'incomplete'}")
        except DocumentedError:
            btrfs.delete(target)
            raise
        return found


def define(migration: Migration, layout: Layout) -> str:
    """Write the container's configuration for this host, fenced, because we may not start it yet.

    Returns what reaches out.

    The files of the fenced copy of an earlier stay are put aside until the migration has ended. If nothing is there,
    the directory is made beside its place and moved there as a whole, fence included. Raises ContainerExists if someone
    has created a container of that name since the migration began, ConsentNeeded if the kept configuration is one that
    its sender may not bring, and ConfigInvalid if LXC would read it differently from us.
    """
    carried, bridges = kept_config(layout)
    texts, mapped_root = (carried.text, *carried.includes.values()), migration.begun.mapped_root
    allowed = grant.of_migration(migration)
    for text in texts:
        allowed.check_config(migration.name, text, mapped_root)
    text, copies = arriving_config.adopted(migration, layout, carried, bridges, trusted=allowed.hooks)
    renamed = migration.other_name != migration.name
    origins.refuse_foreign(migration.journal, layout, migration.begun.origin, renamed=renamed)
    folder = layout.container
    if origins.whose(layout) is Whose.NOBODYS:
        folder = layout.beside
        layout.drop_beside()
        # As lxc-create does: a mapped root must be able to traverse it to its root file system.
        folder.mkdir(mode=0o770)
        if migration.begun.mapped_root:
            os.chown(folder, migration.begun.mapped_root, 0)
    put_away.keep_old(layout)
    if not layout.is_own_rootfs():
        put_away.require_room(layout)  # before anything is frozen
    arriving_config.write(layout, folder, text, copies, arriving_message(migration))
    if copy := seccomp_profile.named(text):  # before it can be started here
        try:
            seccomp_profile.make(copy)
        except (OSError, ValueError) as error:
            log.warning(f"{migration.name} can be moved here, but not started anew, without {copy}: {error}")
    if folder == layout.beside:
        try:
            put(folder, layout.container)
        except FileExistsError as error:
            raise ContainerExists(host_name=this_host(), name=layout.name, lxcpath=layout.lxcpath) from error
    return "; ".join(filter(None, [grant.reaching(text, mapped_root) for text in texts])) if allowed.hooks else ""


def arriving_message(migration: Migration) -> str:
    return (f"{migration.name} is being moved here from {migration.peer} (migration {migration.id}) and must not be"
            f" started by hand. See: {next_commands.command('status', migration)}")
