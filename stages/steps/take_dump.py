# SPDX-License-Identifier: GPL-2.0-or-later
"""On the destination: where a dump's data goes, that is the last disk changes and the memory images."""

from __future__ import annotations

from migrator.criu import criu_dump
from migrator.errors import UsageError
from migrator.errors.data import NoSpace
from migrator.record import image_folders
from migrator.record.journal import Migration
from migrator.record.migration_paths import Layout
from migrator.record.states import State
from migrator.remote.answering import Place, Receivers, Service
from migrator.transfer import room_bounds, spool
from migrator.transfer.messages import ImagesTransfer, IncrementTransfer
from stages.steps import offer, room
from stages.steps.standstill import INCREMENT


def receive_increment(service: Service, asked: IncrementTransfer) -> Place:
    """Where the increment goes."""
    migration = service.migration(asked.id)
    _must_receive_dump(migration, asked)
    migration.note("increment", anew=True, increment_uuid=asked.uuid[:36])
    here = Layout.of(migration)
    target = here.snapshot(len(migration.data.rounds) + 1)
    behind = service.import_behind(here.spool / INCREMENT, target) if asked.behind else None
    return Place(here.spool, True, {INCREMENT}.__contains__, behind, service.disk_bounds(migration))


def receive_images(service: Service, asked: ImagesTransfer) -> Place:
    """Where the images go: memory if there is enough. They need not be on disk, because the source keeps the original.
    """
    migration = service.migration(asked.id)
    _must_receive_dump(migration, asked)
    if not migration.memory:
        raise UsageError(reason=f"migration {migration.id} moves no memory")
    here = Layout.of(migration)
    folder = here.images()  # of the same dump: when that began, those of an earlier one were dropped
    if folder is None:
        service.refuse_more(migration)
        folder, why = image_folders.provide_images(here.image_folders(), asked.bytes)
        try:
            spool.check_space(folder, asked.bytes, what=f"the memory of {migration.name}")
        except NoSpace:
            image_folders.remove_images(folder)
            raise
        migration.note("images", images=str(folder), why=why)
        service.images_of = migration.id
    return Place(folder, False, criu_dump.is_image, None,
                 room_bounds.of_images(folder) if service.grant.restricted else None)


def _must_receive_dump(migration: Migration, asked: IncrementTransfer | ImagesTransfer) -> None:
    if migration.state is not State.RECEIVING_DUMP or asked.attempt != offer.attempt(migration):
        raise UsageError(reason=f"migration {migration.id} is in state {migration.state} and does not expect this dump")
    # Otherwise a spool would be made elsewhere.
    room.require(migration, Layout.of(migration))


RECEIVERS: Receivers = {IncrementTransfer: receive_increment, ImagesTransfer: receive_images}
