# SPDX-License-Identifier: GPL-2.0-or-later
"""What a destination has for a migration that begins, or for its next round: the disk, space on it, what is there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from msgspec import UNSET

from migrator.base import log
from migrator.copies import bases, make_room, origins
from migrator.errors.containers import DiskAway
from migrator.host import btrfs
from migrator.record import lxc_disk, next_commands
from migrator.record.journal import Migration
from migrator.record.migration_paths import Layout
from migrator.record.states import State
from migrator.remote.answering import Service
from migrator.transfer import received_snapshot, room_bounds, spool
from migrator.transfer.messages import Begin


@contextlib.contextmanager
def required(migration: Migration) -> Iterator[None]:
    """For a block that requires the disk before anything may run from it: if the disk is lost, nothing else is.

    DiskAway then says how to give the migration up. It does not advise creating a spool on what is there instead, which
    would vouch for a migration that began elsewhere.
    """
    try:
        yield
    except DiskAway as error:
        error.fields["otherwise"] = ("If that disk is lost for good, or was not the right one, nothing has run from "
                                     f"it: give up with: {next_commands.command('rollback@source', migration)}")
        raise


def require(migration: Migration, layout: Layout) -> None:
    """Raise DiskAway as `required` does."""
    with required(migration):
        lxc_disk.require(layout)


def require_disk(migration: Migration, layout: Layout) -> None:
    """Raise DiskAway unless what is about to be made will be where it belongs, next to what was made before.

    There may be no spool until the first round has arrived: the program that began it may have been killed before that.
    """
    with required(migration):
        lxc_disk.require_same(layout, migration.begun.disk)
        if migration.state is not State.RECEIVING or migration.data.rounds:
            lxc_disk.require(layout)


def bases_for(service: Service, layout: Layout, origin: str) -> list[str]:
    """The uuids of what an increment can start from here.

    A sender who knows a subvolume's uuid can make that subvolume part of what it sends. So a caller who is not root
    learns only those of the container that it brings.
    """
    return [base.stream_uuid for base in bases.believed(service.journal, layout)
            if not service.grant.restricted or origins.is_of(service.journal, base.path, origin)]


def check(service: Service, layout: Layout, asked: Begin, origin: str) -> None:
    """Raise NoSpace unless the whole disk, or what has not arrived yet of it, fits twice: spooled and imported.

    Nobody knows in advance how large an increment on a base that both hosts have will be, nor what remains of one that
    has begun; for those, nothing beyond the reserve is required.
    """
    what = f"the disk of {layout.name}, spooled and imported"
    free = room_bounds.reserve(layout.lxcpath) if service.grant.restricted else 0
    # Older versions may start from any.
    usable = (asked.held if asked.usable is UNSET else asked.usable)[:bases.HELD_MAX]
    if set(bases_for(service, layout, origin)) & set(usable):
        make_room.check_space(service.journal, layout, free, usable, what=what, caller=service.grant.caller)
        return
    missing = max(0, asked.disk_bytes - spool.size_of(layout.spool))
    imported_too = missing if asked.one_shot else asked.disk_bytes  # it is imported while it arrives, or later
    needed = free + missing + imported_too
    make_room.check_space(service.journal, layout, needed, usable, what=what, caller=service.grant.caller)


def regain(layout: Layout, number: int, leave: int) -> None:
    """Remove what an interrupted import of a round has made, before more of the round arrives or it is imported again.

    Both of these may only use free space, of which `leave` bytes must stay free.

    Call with the container locked and no import running behind; not while a container is frozen, because btrfs frees
    the space of deleted subvolumes in the background. We wait for that, unless there is room for the stream to double
    first, which takes longer. Raises what `received_snapshot.make_way` raises.
    """
    target = layout.snapshot(number)
    if not (btrfs.is_subvolume(target) and btrfs.info(target).received_uuid):  # otherwise it is complete
        received_snapshot.make_way(target, layout.spool)
    if btrfs.free_bytes(layout.folder) < leave + 3 * spool.size_of(layout.spool):
        log.verbose(f"Space is short in {layout.folder}: waiting until what was deleted there is freed")
        btrfs.wait_deleted(layout.folder)
