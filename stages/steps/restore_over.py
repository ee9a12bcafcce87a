# SPDX-License-Identifier: GPL-2.0-or-later
"""restore-dump over the source's own connection, for a source that does everything in one go.

This is the destination's part. The source, which still has the container frozen, is asked last whether it still waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from migrator.base import boot_clock
from migrator.copies.leave import Leave
from migrator.errors.connection import ConnectionLost, ProtocolError
from migrator.errors.outcomes import SourceStillFrozen
from migrator.record import lxc_disk
from migrator.record.decisions import Verdict
from migrator.record.migration_paths import Layout
from migrator.record.states import State
from migrator.remote.answering import Handlers, Service
from migrator.transfer import messages
from migrator.transfer.messages import Restored
from migrator.transfer.rpc import Takeover
from stages.steps import prologue, restore_here, settling
from stages.steps.restore_here import Restore, take_offered


def restore_for_source(service: Service, asked: messages.Restore, leave: Callable[[], float]) -> Restored:
    """restore-dump over the source's own connection; `running_for` is for how many seconds the container has run here.

    `leave` is called when all is ready; it returns until when the container may be let run, by `boot_clock.now`, and
    raises if it must not be.
    """
    migration = service.migration(asked.id)
    if migration.state is State.RESTORING:
        settling.settle(migration)
    settling.refuse_stopped(migration)
    if settling.stands_fenced(migration):
        settling.go_on(migration, leave())
    if prologue.require_turn(restore_here.STAGE, migration).verdict is Verdict.GO:
        service.refuse_more(migration)
        lxc_disk.require(Layout.of(migration))
        try:
            take_offered(migration)
            Restore(migration, min(asked.limit, 1e6), service, leave=leave).run(wait=False)
        except SourceStillFrozen as error:  # the source itself says what that means
            raise error.cause from error
    restored_at = migration.arrived.restored_at or 0.0
    return Restored(state=migration.state, restored_at=restored_at, running_for=time.time() - restored_at)


def with_leave(service: Service, asked: messages.Restore, leave: Leave) -> Restored:
    """As `restore_for_source`, for a source that must say that it still waits."""
    try:
        done = restore_for_source(service, asked, leave.wait)
    except (ConnectionLost, ProtocolError):
        raise
    except Exception:
        leave.wait()  # it is read before the next request
        raise
    leave.wait()
    return done


def restore_over(service: Service, asked: messages.Restore) -> Takeover:
    """restore-dump over the source's own connection; the first reply is only there to be answered."""
    since, state = boot_clock.now(), service.migration(asked.id).state
    return Takeover(Restored(state=state), lambda connection: with_leave(service, asked, Leave(connection, since)))


HANDLERS: Handlers = {messages.Restore: restore_over}
