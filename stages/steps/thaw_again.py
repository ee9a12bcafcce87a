# SPDX-License-Identifier: GPL-2.0-or-later
"""How what was frozen or stopped on the source runs again: it is thawed, or started from its disk."""

from __future__ import annotations

import contextlib

from migrator.copies import after_crash, no_memory, origins, remains, second_start, thawing
from migrator.copies.thawing import Frozen
from migrator.criu import criu_dump
from migrator.errors import MigratorError
from migrator.errors.memory import StartFailed
from migrator.errors.outcomes import SourceStillStopped
from migrator.errors.this_host import CommandTimeout
from migrator.guest import live_steps
from migrator.host import btrfs, network
from migrator.record import next_commands
from migrator.record.journal import Migration
from migrator.record.migration_paths import Layout
from migrator.record.next_commands import this_host
from migrator.record.states import FROZEN, State


def thaw_source(migration: Migration) -> bool:
    """Plug the container in again and thaw it, if this migration froze it; returns whether it did.

    The process id and cgroup are those of the freeze, whatever LXC says. If they are gone, as after a reboot, the
    container is started from its disk, unfenced, unless someone has done so. Raises StartFailed, also if a second start
    is alive, and OSError. One that was stopped without its memory is started again; raises SourceStillStopped. A full
    disk does not keep it from running.
    """
    if not migration.memory:
        return _start_again(migration)
    if not migration.still.cgroup or not may_be_frozen(migration):
        return False
    if not remains.first_is_here(migration):
        remains.require_none(migration)
        if migration.still.ports:
            thawing.attempt(f"What silenced the network of {migration.name} stays", lambda: network.hear(migration.id))
        after_crash.start_from_disk(migration)
        return False
    frozen = Frozen.on_record(migration.id, migration.name, migration.lxcpath, migration.still)
    criu_dump.wait_for_dump(migration.name, Layout.of(migration).dumped_into())
    with migration.step("thaw", must_be_recorded=False):
        # Last: nothing but this check keeps another one from being started meanwhile.
        second_start.refuse(frozen, its=migration.copy.rootfs_uuid)
        thawing.thaw(frozen)
    live_steps.put_back(frozen.name, frozen.pid)
    return True


def may_be_frozen(migration: Migration) -> bool:
    """Whether it is this migration that keeps it frozen; anyone who froze it after it was thawed did so on purpose."""
    return migration.state in FROZEN and migration.still.held is not False


def _start_again(migration: Migration) -> bool:
    if migration.state is State.DUMPING and origins.is_there(migration):  # otherwise that may be the last copy
        here = Layout.of(migration)
        with contextlib.suppress(MigratorError, OSError):  # its disk may be full; other rounds may be needed
            btrfs.delete(here.snapshot(len(migration.data.rounds) + 1))
    try:
        return no_memory.start_again(migration)
    except (StartFailed, CommandTimeout) as error:
        raise SourceStillStopped(error, name=migration.name, source=this_host(),
                                 next=next_commands.command("resume", migration),
                                 rollback=next_commands.command("rollback", migration)) from error
