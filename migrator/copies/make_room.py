# SPDX-License-Identifier: GPL-2.0-or-later
"""Room for what is to arrive: bases that are kept for increments go for it, those that are needed least first."""

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
    """As `spool.check_space`; before it raises NoSpace, bases are dropped, the oldest first; none where it is in vain.

    Not those that the other host of this migration has too, as `there` says: without these it needs more. Nor those of
    a container that another migration is under way of, which may start from them. A `caller` who is not root has only
    those dropped that it has brought.
    """
    try:
        spool.check_space(layout.lxcpath, needed, what=what)
        return
    except NoSpace:
        waiting = [each for each in _droppable(journal, layout, caller) if _unused(each, layout, there)]
        spare = _most_that_goes(waiting, layout, there)
        if not waiting:
            raise
    if spare is not None:  # it asks for a fiftieth more than is needed
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
    """What it has kept that the migration of `layout` will not start from."""
    return [path for path in bases.paths(migration)
            if migration.name != layout.name or btrfs.info(path).stream_uuid not in there]


def _most_that_goes(migrations: Iterable[Migration], layout: Layout, there: Collection[str]) -> int | None:
    """Bytes that dropping all of them can free at most; None where that cannot be told."""
    try:
        return sum(btrfs.total_bytes(path) for each in migrations for path in _unused(each, layout, there))
    except (MigratorError, OSError, ValueError, IndexError) as error:
        log.verbose(f"How much space the kept bases take is unknown: {error}")
        return None


def _make_room(migration: Migration, layout: Layout, there: Collection[str]) -> None:
    with contextlib.ExitStack() as stack:
        if migration.name != layout.name:  # that one is locked
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
