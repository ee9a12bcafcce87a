# SPDX-License-Identifier: GPL-2.0-or-later
"""What a destination has for a migration that begins, or its next round: the disk, room on it, what is there."""

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
    """For a block that requires the disk before anything may run from it: where that is lost, nothing is lost with it.

    So DiskAway says how the migration is given up, and not how a spool is made on what stands there instead, which
    would vouch for one that began elsewhere.
    """
    try:
        yield
    except DiskAway as error:
        error.fields["otherwise"] = ("If that disk is lost for good, or was not the right one, nothing has run from "
                                     f"it: give up with: {next_commands.command('rollback@source', migration)}")
        raise


def require(migration: Migration, layout: Layout) -> None:
    """Raises DiskAway as `required`."""
    with required(migration):
        lxc_disk.require(layout)


def require_disk(migration: Migration, layout: Layout) -> None:
    """Raises DiskAway unless what is going to be made comes to lie where it belongs, beside what has been made before.

    Until the first round has arrived there may be no spool: who began it may have been killed before that.
    """
    with required(migration):
        lxc_disk.require_same(layout, migration.begun.disk)
        if migration.state is not State.RECEIVING or migration.data.rounds:
            lxc_disk.require(layout)


def bases_for(service: Service, layout: Layout, origin: str) -> list[str]:
    """The uuids of what an increment can start from here.

    Who knows a uuid can have that subvolume made part of what it sends: a caller who is not root learns only those of
    the container that it brings.
    """
    return [base.stream_uuid for base in bases.believed(service.journal, layout)
            if not service.grant.restricted or origins.is_of(service.journal, base.path, origin)]


def check(service: Service, layout: Layout, asked: Begin, origin: str) -> None:
    """Raise NoSpace unless the whole disk, or what of it has not arrived yet, fits twice: spooled and imported.

    How large an increment will be nobody knows, on what the source says that it can start
    from, and is told that it can here; nor what the rest of one that has begun will be.
    """
    what = f"the disk of {layout.name}, spooled and imported"
    free = room_bounds.reserve(layout.lxcpath) if service.grant.restricted else 0
    usable = (asked.held if asked.usable is UNSET else asked.usable)[:bases.HELD_MAX]  # older ones start from any
    if set(bases_for(service, layout, origin)) & set(usable):
        make_room.check_space(service.journal, layout, free, usable, what=what, caller=service.grant.caller)
        return
    missing = max(0, asked.disk_bytes - spool.size_of(layout.spool))
    imported_too = missing if asked.one_shot else asked.disk_bytes  # it is imported while it arrives, or later
    needed = free + missing + imported_too
    make_room.check_space(service.journal, layout, needed, usable, what=what, caller=service.grant.caller)


def regain(layout: Layout, number: int, leave: int) -> None:
    """What an import of a round that did not come to its end has made goes, before more of the round arrives, or it is
    imported anew: both are held to what is free, `leave` bytes of which stay so.

    Ask with the container locked, and no import behind under way; not while a container stands still, as btrfs frees
    behind what was deleted. That is waited for, unless there is room until the stream has doubled, which takes longer.
    Raises as `received_snapshot.make_way`.
    """
    target = layout.snapshot(number)
    if not (btrfs.is_subvolume(target) and btrfs.info(target).received_uuid):  # else it is whole
        received_snapshot.make_way(target, layout.spool)
    if btrfs.free_bytes(layout.folder) < leave + 3 * spool.size_of(layout.spool):
        log.verbose(f"Space is short in {layout.folder}: waiting until what was deleted there is freed")
        btrfs.wait_deleted(layout.folder)
