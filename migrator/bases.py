# SPDX-License-Identifier: GPL-2.0-or-later
"""The bases that attempts leave behind when they are given up: snapshots that both hosts have.

The next attempt between the same two hosts sends only what has changed since. The record of a migration that has ended
so names them in `kept`; there is one for each container and each other host. A newer one takes its place, a migration
that succeeds drops all of them, and where room is short they are the first to go.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable
from pathlib import Path

from migrator import advice, btrfs, log, names, spool
from migrator.btrfs import Subvolume
from migrator.errors import Busy, NoSpace
from migrator.journal import Journal, Migration
from migrator.layout import Layout, locked

HELD_MAX = 1000  # uuids in one request


def held(layout: Layout, *, own: bool = False) -> list[str]:
    """The uuids of what this host can start from, oldest first; `own` are those of this migration alone."""
    return [base.stream_uuid for base in layout.bases() if not own or base.path.name.startswith(f"{layout.id}.")]


def asked(value: object) -> list[str]:
    """`held` of the other host, as it came over the wire; raises InvalidName."""
    return [names.uuid(str(each)) for each in value[:HELD_MAX]] if isinstance(value, list) else []


def common(layout: Layout, there: Collection[str]) -> Subvolume | None:
    """The newest snapshot of this migration that both hosts have; `there` are the uuids of the other one's."""
    own = [base for base in layout.bases() if base.path.name.startswith(f"{layout.id}.")]
    return next((base for base in reversed(own) if base.stream_uuid in there), None)


def paths(migration: Migration) -> list[Path]:
    """What a migration that was given up has kept, and is still there."""
    folder = Layout(migration.lxcpath, migration.name, migration.id).folder
    return [folder / name for name in migration.detail.get("kept", []) if (folder / name).is_dir()]


def drop(migration: Migration, *, but: Collection[Path] = ()) -> None:
    """Remove what a migration has kept, except `but`."""
    found = paths(migration)
    for path in found:
        if path not in but:
            btrfs.delete(path)
    left = [path.name for path in found if path in but]
    if left != migration.detail.get("kept", []):
        migration.note("base-dropped", kept=left)


def supersede(migration: Migration) -> None:
    """Drop what earlier attempts between the same two hosts have kept: both now have a newer one."""
    for earlier in _between_the_same(migration):
        drop(earlier)


def settle(migration: Migration, there: Collection[str]) -> None:
    """A new attempt begins, and the other host has told what it has: what it has not is of no use any more."""
    for earlier in _between_the_same(migration):
        drop(earlier, but=[path for path in paths(earlier) if btrfs.info(path).stream_uuid in there])


def _between_the_same(migration: Migration) -> Iterable[Migration]:
    other = advice.other_host(migration.role, migration.peer, migration.detail)
    for each in migration.others():
        its = advice.other_host(each.role, each.peer, each.detail)
        if each.ended and each.detail.get("kept") and its == other:
            yield each


def check_space(journal: Journal, layout: Layout, needed: int, there: Collection[str], *, what: str) -> None:
    """As `spool.check_space`; before it raises NoSpace, bases are dropped, the oldest first.

    Not those that the other host of this migration has too, as `there` says: without these it needs more.
    """
    waiting = [each for each in journal.all() if each.ended and each.lxcpath == layout.lxcpath and paths(each)]
    while True:
        try:
            spool.check_space(layout.lxcpath, needed, what=what)
            return
        except NoSpace:
            if not waiting:
                raise
        _make_room(waiting.pop(0), layout, there)


def _make_room(migration: Migration, layout: Layout, there: Collection[str]) -> None:
    with contextlib.ExitStack() as stack:
        if migration.name != layout.name:  # that one is locked
            try:
                stack.enter_context(locked(migration.name))
            except Busy:
                return
        used = [path for path in paths(migration) if migration.name == layout.name
                and btrfs.info(path).stream_uuid in there]
        if len(used) < len(paths(migration)):
            log.info(f"Room is short: the base that was kept of {migration.name} goes (migration {migration.id})")
            drop(migration, but=used)
            btrfs.wait_deleted(layout.lxcpath)


def note(migration: Migration) -> str:
    """For `migrator status`; "" where nothing is kept."""
    found = paths(migration) if migration.ended else []
    if not found:
        return ""
    other = advice.other_host(migration.role, migration.peer, migration.detail)
    return (f"Kept, so that the next move between here and {other} sends only what has changed:"
            f" {', '.join(map(str, found))}. See how large it is, and free it, with: migrator cleanup {migration.name}"
            " [--dry-run]")
