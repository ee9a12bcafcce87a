# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes room for what is to arrive: bases kept for increments are dropped, the least needed first."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable
from pathlib import Path

from migrator.base import log, names
from migrator.copies import bases
from migrator.errors import MigratorError
from migrator.errors.data import NoSpace
from migrator.errors.this_host import Busy
from migrator.host import btrfs
from migrator.record.grant import ROOT
from migrator.record.journal import Journal, Migration
from migrator.record.migration_paths import Layout, locked
from migrator.transfer import spool


def check_space(journal: Journal, layout: Layout, needed: int, there: Collection[str], *, what: str,
                caller: str = ROOT.caller) -> None:
    """As `spool.check_space`, but drops bases, oldest first, before it raises NoSpace; none if that would not suffice.

    Bases that the other host of this migration has too (`there`) stay: without them, more room would be needed. So do
    bases of a container that another migration in progress may start from. A `caller` who is not root can only have
    bases dropped that this caller brought.
    """
    try:
        spool.check_space(layout.lxcpath, needed, what=what)
        return
    except NoSpace:
        waiting = [each for each in _droppable(journal, layout, caller) if _unused(each, layout, there)]
        spare = _most_that_goes(waiting, layout, there)
        if not waiting:
            raise
    if spare is not None:  # it asks for 2 % more than is needed
        spool.check_space(layout.lxcpath, needed - -(-spare * 50 // 51), what=what)
    while True:
        _make_room(waiting.pop(0), layout, there)
        try:
            spool.check_space(layout.lxcpath, needed, what=what)
            return
        except NoSpace:
            if not waiting:
                raise


def _droppable(journal: Journal, layout: Layout, caller: str) -> list[Migration]:
    found = [each for each in journal.all() if names.same_path(each.lxcpath, layout.lxcpath)]
    under_way = {each.name for each in found if not each.ended and each.id != layout.id}
    return [each for each in found if each.ended and each.name not in under_way
            and caller in (ROOT.caller, each.caller)]


def _unused(migration: Migration, layout: Layout, there: Collection[str]) -> list[Path]:
    """What a migration has kept and the migration of `layout` will not start from."""
    return [path for path in bases.paths(migration)
            if migration.name != layout.name or btrfs.info(path).stream_uuid not in there]


def _most_that_goes(migrations: Iterable[Migration], layout: Layout, there: Collection[str]) -> int | None:
    """The most bytes that dropping all of them can free; None if that cannot be determined."""
    try:
        return sum(btrfs.total_bytes(path) for each in migrations for path in _unused(each, layout, there))
    except (MigratorError, OSError, ValueError, IndexError) as error:
        log.verbose(f"How much space the kept bases take is unknown: {error}")
        return None


def _make_room(migration: Migration, layout: Layout, there: Collection[str]) -> None:
    with contextlib.ExitStack() as stack:
        if migration.name != layout.name:  # for layout.name itself, the caller holds the lock
            try:
                stack.enter_context(locked(migration.name, lxcpath=migration.lxcpath))
            except Busy:
                return
            if any(not each.ended for each in migration.others() if each.id != layout.id):
                return  # it has begun since we looked
        unused = _unused(migration, layout, there)
        if unused:
            log.info(f"Space is short: removing the base that was kept of {migration.name} (migration {migration.id})")
            bases.drop(migration, but=[path for path in bases.paths(migration) if path not in unused])
            btrfs.wait_deleted(layout.lxcpath)
