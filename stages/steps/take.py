# SPDX-License-Identifier: GPL-2.0-or-later
"""The destination's part in handing over the ownership token: a dump begins, is dropped, and the token is taken.

Requests carry the number of the dump that they are about, so that one which arrives late, from a connection long gone,
does nothing to a newer dump. docs/states.md describes the protocol.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import UNSET

from migrator.base import boot_clock, names
from migrator.config import container_config
from migrator.copies import origins
from migrator.copies.leave import Leave
from migrator.criu import criu_dump
from migrator.errors import UsageError
from migrator.errors.connection import ConsentNeeded
from migrator.errors.containers import OutOfOrder
from migrator.errors.memory import DumpRefused
from migrator.host import btrfs
from migrator.record import lxc_disk, next_commands
from migrator.record.journal import Migration
from migrator.record.migration_paths import Layout
from migrator.record.states import Event, State
from migrator.remote.answering import Handlers, Service
from migrator.transfer import spool
from migrator.transfer.messages import Done, DumpBegin, DumpDrop, Own, Restore, Restored
from migrator.transfer.rpc import Takeover
from stages.steps import consented, restore_over, room, unrecorded
from stages.steps.offer import attempt
from stages.steps.standstill import INCREMENT

TAKEN = {State.OWNED, State.RESTORING, State.RESTORED, State.FINISHED}
ARRIVING = {State.RECEIVING_DUMP, State.DUMP_RECEIVED}
DUMPS_MAX = 10**9  # the highest number a dump can have
INTERFACES_MAX = 512  # whose setting is remembered


def dump_begin(service: Service, asked: DumpBegin) -> Done:
    """A dump is about to come; what is left of an earlier one is removed."""
    migration, number = service.migration(asked.id), asked.attempt
    if number <= attempt(migration):
        raise UsageError(reason=f"dump {number} of migration {migration.id} is not newer than the last one here")
    _check_number(number)
    service.refuse_data(migration)
    if migration.state in (State.IMPORTED, *ARRIVING):
        _require_defined(migration)
        consented.require(migration)
        _require_whole(migration)
    migration.move(Event.RECEIVE_DUMP, attempt=number, memory=asked.memory)
    here = Layout.of(migration)
    here.make_folder()  # a migration begun by an older version does not have them yet
    here.spool.mkdir(mode=0o700, exist_ok=True)
    _drop_dump(service, migration)
    return Done(state=migration.state)


def _require_defined(migration: Migration) -> None:
    """Check that what was defined here is still there, so that nothing is frozen in vain.

    Raises OutOfOrder if it was removed, and has it sent and defined again; ContainerExists, DiskAway.
    """
    layout = Layout.of(migration)
    with room.required(migration), lxc_disk.held(layout):
        found = origins.whose(layout)
    if found is origins.Whose.NOBODYS:
        migration.move(Event.RECEIVE)
        raise OutOfOrder(stage="create-dump", missing=f"{layout.container} was removed",
                         next=next_commands.again("prepare-data@source", migration))
    origins.require_ours(layout)


def _require_whole(migration: Migration) -> None:
    """What it includes, and what was written into it here, may have changed since: raises ConfigInvalid."""
    config = Layout.of(migration).container / "config"
    container_config.whole(migration.name, config, container_config.unfenced(container_config.text_of(config)))


def dump_drop(service: Service, asked: DumpDrop) -> Done:
    """The source has thawed: this dump will never be restored."""
    migration = service.migration(asked.id)
    if asked.attempt == attempt(migration):
        _close(service, migration)
    return Done(state=migration.state)


def own(service: Service, asked: Own) -> Takeover:
    """Take the token over: from the moment this is recorded, only this host may let the container run.

    Only DumpRefused lets the source thaw, and it is the final word on that dump: it is recorded before it is said, so
    that the same offer, should it arrive again late, is refused again. If the container is alive here, although a
    journal restored from a backup does not know it, nothing is refused, nor is the snapshot removed that shows whose it
    is.

    There are two replies. With `restore_within`, in seconds, what that permits is done at once: the second reply is
    that of `restore`. Its last step, or without it the record of until when restore-dump may be typed here without
    asking, waits until the source has said, after the first reply, that it is still waiting for this very request: a
    request that was stuck in a pipe, while this whole host was suspended for instance, finds a source that may be
    running the container again.
    """
    since = boot_clock.now()
    migration, number = service.migration(asked.id), asked.attempt
    latest = attempt(migration)
    if migration.state in TAKEN:
        if number != latest:
            raise UsageError(reason=f"the token of migration {migration.id} was taken with dump {latest}")
    else:
        try:
            _take(migration, asked)
        except DumpRefused:
            unrecorded.refuse(migration)
            if number > latest:
                _check_number(number)
                migration.note("refused", anew=True, attempt=number)
            if number >= latest:
                _close(service, migration)
            raise
    taken = Restored(state=migration.state)
    if asked.restore_within is UNSET:
        return Takeover(taken, lambda connection: _by_hand(migration, Leave(connection, since)))
    restore = Restore(id=migration.id, limit=asked.restore_within)
    return Takeover(taken, lambda connection: restore_over.with_leave(service, restore, Leave(connection, since)))


def _by_hand(migration: Migration, word: Leave) -> Restored:
    """An operator is about to type restore-dump here."""
    end = word.wait()
    if migration.state is State.OWNED:
        migration.note("leave", anew=True, leave=boot_clock.until(end, word.seconds))
    return Restored(state=migration.state)


def _take(migration: Migration, asked: Own) -> None:
    """Raise DumpRefused unless it is the latest dump, every file of it is here as it was sent, and all of it may come.
    """
    if asked.attempt != attempt(migration) or migration.state not in ARRIVING:
        raise DumpRefused(name=migration.name,
                          reason=f"it is {migration.state} and does not expect dump {asked.attempt}")
    here = Layout.of(migration)
    if not origins.whose(here).may_go:
        raise DumpRefused(name=migration.name, reason=f"{here.container} was removed, or now belongs to another "
                                                      "container")
    try:
        consented.require(migration)
    except ConsentNeeded as error:
        raise DumpRefused(name=migration.name, reason=f"{error}".rstrip(".")) from error
    images = here.images()
    if (images is None) is migration.memory or not spool.is_complete(here.spool / INCREMENT):
        raise DumpRefused(name=migration.name, reason="its dump has not arrived completely")
    files = criu_dump.image_files(images) if images else []
    for path in files:
        if not spool.is_complete(path):
            raise DumpRefused(name=migration.name, reason=f"the image {path.name} is not complete")
    dad = _dad(migration, asked.dad)
    if migration.state is State.RECEIVING_DUMP:
        migration.move(Event.DUMP_RECEIVED, image_files=[path.name for path in files], dad=dad)
    migration.move(Event.OWN)


def _dad(migration: Migration, said: Mapping[str, str | int]) -> dict[str, str]:
    """What `network.bring_back_dad` is to set: a C int for each interface; raises DumpRefused."""
    found = {names.inside_interface(name): int(value) for name, value in said.items()}
    if len(found) > INTERFACES_MAX:
        raise DumpRefused(name=migration.name, reason=f"it has more than {INTERFACES_MAX} interfaces")
    if any(abs(value) >= 1 << 31 for value in found.values()):
        raise DumpRefused(name=migration.name, reason="its accept_dad is not a setting that the kernel has")
    return {name: str(value) for name, value in found.items()}


def _check_number(number: int) -> None:
    if number > DUMPS_MAX:
        raise UsageError(reason=f"no migration reaches a dump number above {DUMPS_MAX}")


def _close(service: Service, migration: Migration) -> None:
    """Record that the token of the latest dump will never be taken, and remove that dump."""
    if migration.state in ARRIVING:
        migration.move(Event.DROP_DUMP)
        _drop_dump(service, migration)


def _drop_dump(service: Service, migration: Migration) -> None:
    here = Layout.of(migration)
    here.drop_images()
    spool.drop(here.spool / INCREMENT)
    service.end_behind()
    btrfs.delete(here.snapshot(len(migration.data.rounds) + 1))  # received during the transfer


HANDLERS: Handlers = {DumpBegin: dump_begin, DumpDrop: dump_drop, Own: own}
