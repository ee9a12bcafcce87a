# SPDX-License-Identifier: GPL-2.0-or-later
"""The bases that attempts leave behind when they are given up: snapshots that both hosts have.

The next attempt between the same two hosts sends only what has changed since. The record of a migration that has ended
so names them in `kept`; there is one for each container and each other host. A newer one takes its place, a migration
that succeeds drops all of them that are of the same container, and where room is short they are the first to go.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from migrator.base import log
from migrator.copies import origins
from migrator.errors import MigratorError
from migrator.errors.containers import DiskAway, OutOfOrder
from migrator.host import btrfs, subvolume_uuids
from migrator.host.btrfs import Subvolume
from migrator.record import next_commands
from migrator.record.grant import ROOT
from migrator.record.journal import Journal, Migration
from migrator.record.migration_paths import Layout
from migrator.record.states import Role, State

HELD_MAX = 1000  # uuids in one request


def held(layout: Layout, *, own: bool = False) -> list[str]:
    """The uuids of what this host can start from, oldest first; `own` are those of this migration alone."""
    return [base.stream_uuid for base in layout.bases() if not own or base.path.name.startswith(f"{layout.id}.")]


def usable(journal: Journal, layout: Layout, origin: str, rootfs: Path) -> list[str]:
    """On the source: the uuids of what a round of the container with that root file system can start from.

    Not of what is another container's that had its name before, and may be the last copy of that: next to nothing would
    be spared, and the destination would take the two for one. Which are its own tells its origin, or btrfs: what was
    made of its root file system, or of what that is a snapshot of, or is such itself.
    """
    found = believed(journal, layout)
    its: set[str] = set()
    with contextlib.suppress(MigratorError, OSError):  # where it cannot be told more is sent
        if found:
            its.add(btrfs.info(rootfs).uuid)
            its.update(subvolume_uuids.ancestors(rootfs))
    return [base.stream_uuid for base in found if base.path.name.startswith(f"{layout.id}.")
            or {base.uuid, base.parent_uuid} & its or origins.is_of(journal, base.path, origin)]


def common(layout: Layout, there: Collection[str], on_disk: Collection[str] | None = None) -> Subvolume | None:
    """The newest snapshot of this migration that both hosts have; `there` are the uuids of the other one's.

    On the destination only one that is `on_disk`. None, too, where the snapshots cannot be read: a base is not worth a
    container that stays frozen.
    """
    try:
        own = [base for base in layout.bases() if base.path.name.startswith(f"{layout.id}.")]
    except (MigratorError, OSError) as error:
        log.warning(f"Nothing is kept of {layout.name} that the next attempt could start from: {error}")
        return None
    return next((base for base in reversed(own)
                 if base.stream_uuid in there and (on_disk is None or base.uuid in on_disk)), None)


def on_disk(migration: Migration) -> set[str]:
    """On the destination: the uuids, here, of what has been received and is known to be on disk with all its files.

    `btrfs receive` leaves what is in the files to the next sync, but makes the snapshot whole and read-only in
    transactions of its own: after a power cut one that looks complete may have empty files. An import syncs; and to
    make a root file system of a snapshot writes out what that has (btrfs_mksnapshot in the kernel's fs/btrfs/ioctl.c).
    What is received once more gets another uuid.
    """
    return {uuid for event in migration.events() if (uuid := event.told.on_disk_uuid)}


def believed(journal: Journal, layout: Layout) -> list[Subvolume]:
    """`Layout.bases` without what an attempt that was given up here has not kept.

    A power cut takes the removal of that back, and what was in its files.
    """
    def is_left(path: Path) -> bool:
        came = journal.by_id(path.name.partition(".")[0], Role.DESTINATION)
        given_up = came is not None and came.state in (State.ABANDONING, State.ABANDONED)
        return came is not None and given_up and path.name not in came.copy.kept

    return [base for base in layout.bases() if not is_left(base.path)]


def for_round(layout: Layout, there: Collection[str], its: Collection[str]) -> Subvolume | None:
    """The newest snapshot here of `its`, see `usable`, that the other host has too, whichever migration has left it."""
    found = [base for base in layout.bases() if base.stream_uuid in there and base.stream_uuid in its]
    return found[-1] if found else None


def paths(migration: Migration) -> list[Path]:
    """What a migration that was given up has kept, and is still there."""
    folder = Layout(migration.lxcpath, migration.name, migration.id).folder
    return [folder / name for name in migration.copy.kept if (folder / name).is_dir()]


def named(migration: Migration, uuid: str) -> list[str]:
    """This migration's own snapshot with that uuid, as a record has it."""
    found = common(Layout(migration.lxcpath, migration.name, migration.id), [uuid])
    return [found.path.name] if found else []


def acknowledged(migration: Migration) -> list[str]:
    """The names of all rounds that the other host has acknowledged: what it may have, should it not be heard of."""
    layout = Layout(migration.lxcpath, migration.name, migration.id)
    return [layout.snapshot(number).name for number, round_ in enumerate(migration.data.rounds, 1)
            if round_.bytes is not None]


def last_copy(migration: Migration, *, runs: bool = False) -> list[str]:
    """The name of its newest snapshot, for where the container itself is not here any more; says that it is kept.

    Or where it `runs`, thawed, and its root file system is not: it was destroyed while it stood still, as where LXC's
    monitor was killed, so that LXC had said STOPPED. btrfs keeps that until its end alone, and under no name.
    """
    name = migration.name
    found = Layout(migration.lxcpath, name, migration.id).own_snapshots()[-1:]
    for path in found:
        log.warning(f"{path} is kept, as it may be the last copy of {name}, until:"
                    f" {next_commands.command('cleanup', migration)}")
    if runs and migration.memory:
        log.warning(f"Its root file system is no longer in its place: what {name} writes from now on may be lost"
                    " when it ends")
    return [path.name for path in found]


def last_copies(journal: Journal) -> set[str]:
    """The names of all that are on record as such, of whatever migration: nothing but `cleanup NAME` removes these."""
    return {name for each in journal.all() for name in each.copy.last_copy}


def refuse_another(migration: Migration, stage: str) -> None:
    """On the source: raises OutOfOrder where a dump has found the container gone that what is called so now is not.

    Whoever went on with that would take the last copy for what a round has left.
    """
    if migration.copy.gone and not origins.is_there(migration):
        raise OutOfOrder(stage=stage, next=next_commands.command("rollback", migration), missing=(
            f"{migration.name} was removed while it was frozen or stopped, and whatever has that name now is another "
            "one"))


def refuse_another_disk(migration: Migration, stage: str) -> None:
    """On the source: raises OutOfOrder where what is called so by now has another root file system than was sent.

    Its origin is that of the container that the migration has begun with, and so are the snapshots: the destination
    would take the two for one, and drop what may be the last copy. After the preflight, which tells where a container
    does not live in the root file system that is in its place.
    """
    if origins.is_another(migration):
        raise OutOfOrder(stage=stage, next=next_commands.command("rollback", migration), missing=(
            f"what is called {migration.name} now has a different root file system than the one that was sent"))


def require_last_copy(migration: Migration) -> None:
    """On the source: raises DiskAway where a dump has found the container gone, and what it has left is not to be seen.

    Whoever went on would not record that it may be the last copy.
    """
    if migration.copy.gone:
        require_seen(migration)


def require_seen(migration: Migration) -> None:
    """On the source: raises DiskAway where neither the container nor the place of its snapshots is to be seen."""
    layout = Layout(migration.lxcpath, migration.name, migration.id)
    if not layout.folder.is_dir() and not origins.is_there(migration):
        raise DiskAway(name=layout.name, host_name=next_commands.this_host(), lxcpath=layout.lxcpath,
                       spool=layout.folder, reason=f"{layout.folder} is missing",
                       otherwise=f"Only if that disk is lost for good, with the last copy of {layout.name} that is on"
                                 f" it: mkdir -p {layout.folder}")


def drop(migration: Migration, *, but: Collection[Path] = ()) -> None:
    """Remove what a migration has kept, except `but`. A last copy is none of it."""
    found, last = paths(migration), last_copies(migration.journal)
    for path in found:
        if path not in but and path.name not in last:
            btrfs.delete(path)
    left = [path.name for path in found if path in but]
    if left != list(migration.copy.kept):
        migration.note("base-dropped", kept=left)


def prune(migration: Migration, *, keep: int = 1) -> list[Path]:
    """It has succeeded: keep only the newest snapshot, which both hosts have, and which the next move can start from.

    Returns what it has removed: with a `keep` of 0 that one, too. Of another container that was called so nothing goes,
    see `_its_own`; nor what is on record as a last copy, as two copies of one container may have gone ways of their
    own, each by a host that was forced.
    """
    layout = Layout(migration.lxcpath, migration.name, migration.id)
    last, may_go = last_copies(migration.journal), _its_own(migration)
    its = [path for path in layout.snapshots() if path.name not in last and may_go(path)]
    gone = its[:len(its) - keep]
    for path in gone:
        btrfs.delete(path)
    for each in migration.others():
        drop(each, but=paths(each))  # its record names no more than is there
    layout.tidy()
    return gone


def _its_own(migration: Migration) -> Callable[[Path], bool]:
    """Tells of snapshots whether they are of the container that moves, and not of another one that was called so.

    What is left of that may be its last copy. Which is the same one its origin tells, or btrfs: what was made of the
    same root file system, or what this one was received upon, as long as its own snapshots are there. By the latter
    alone who is not root has only that removed which he has brought.
    """
    layout, others = Layout(migration.lxcpath, migration.name, migration.id), migration.others()
    same = {each.id for each in others if origins.are_of_one(each, migration)} | {migration.id}
    his = {each.id for each in others if each.caller == migration.caller}
    beside = {btrfs.info(path).parent_uuid for path in layout.own_snapshots()} | {migration.copy.rootfs_uuid}

    def is_its_own(path: Path) -> bool:
        id_, found = path.name.partition(".")[0], btrfs.info(path)
        near = bool({found.uuid, found.parent_uuid} & (beside - {"", None}))
        return id_ in same or (near and (migration.caller == ROOT.caller or id_ in his))

    return is_its_own


def supersede(migration: Migration) -> None:
    """Drop what earlier attempts between the same two hosts have kept: both now have a newer one.

    To be called while this one's own snapshots are there, which tell what was of the same container.
    """
    for earlier in _between_the_same(migration):
        drop(earlier)


def settle_late(migration: Migration, uuid: str) -> None:
    """The destination has heard of the rollback only now; it keeps the snapshot `uuid`."""
    kept = named(migration, uuid)
    drop(migration, but=[path for path in paths(migration) if path.name in kept])
    if kept:
        supersede(migration)


def settle(migration: Migration, there: Collection[str]) -> None:
    """A new attempt begins, and the other host has told what it has: what it has not is of no use any more."""
    for earlier in _between_the_same(migration):
        drop(earlier, but=[path for path in paths(earlier) if btrfs.info(path).stream_uuid in there])


def _between_the_same(migration: Migration) -> Iterable[Migration]:
    """Earlier attempts to move this container, and no other one of its name, that have kept something."""
    other, is_its_own = next_commands.other_host(migration), _its_own(migration)
    for each in migration.others():
        its = next_commands.other_host(each)
        if each.ended and each.copy.kept and its == other and _is_proved(migration, each) and all(
                map(is_its_own, paths(each))):
            yield each


def _is_proved(migration: Migration, earlier: Migration) -> bool:
    """Whether both come from the same host, and not only by the name that a limited key gives its own."""
    caller = migration.caller
    return not caller.startswith(f"{ROOT.caller}:") or earlier.caller == caller


def note(migration: Migration) -> str:
    """For `migrator status`; "" where nothing is kept."""
    found = paths(migration) if migration.ended else []
    if not found:
        return ""
    other = next_commands.other_host(migration)
    return (f"Kept so that the next move between here and {other} sends only what has changed:"
            f" {', '.join(map(str, found))}. See how large it is, and free it, with:"
            f" {next_commands.command('cleanup', migration)} [--dry-run]")
