# SPDX-License-Identifier: GPL-2.0-or-later
"""The bases that abandoned attempts leave behind: snapshots that both hosts have.

With a base, the next attempt between the same two hosts sends only what has changed since. The record of a migration
that ended this way lists its bases in `kept`; there is one for each container and each other host. A newer base
replaces it, a successful migration drops all bases of the same container, and when space runs short they are the first
to go.
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
    """The uuids of the snapshots that this host can start from, oldest first; `own` limits them to this migration's."""
    return [base.stream_uuid for base in layout.bases() if not own or base.path.name.startswith(f"{layout.id}.")]


def usable(journal: Journal, layout: Layout, origin: str, rootfs: Path) -> list[str]:
    """On the source: the uuids of the snapshots that a round of the container with this `rootfs` can start from.

    Snapshots of a different container that used to have this name are excluded: they may be the last copy of it, they
    would save next to nothing, and the destination would mistake one container for the other. The container's own
    snapshots are recognised by its origin or by what btrfs records: they were made of its root file system or of what
    that is itself a snapshot of, or are one of those.
    """
    found = believed(journal, layout)
    its: set[str] = set()
    with contextlib.suppress(MigratorError, OSError):  # if that cannot be determined, more is sent
        if found:
            its.add(btrfs.info(rootfs).uuid)
            its.update(subvolume_uuids.ancestors(rootfs))
    return [base.stream_uuid for base in found if base.path.name.startswith(f"{layout.id}.")
            or {base.uuid, base.parent_uuid} & its or origins.is_of(journal, base.path, origin)]


def common(layout: Layout, there: Collection[str], on_disk: Collection[str] | None = None) -> Subvolume | None:
    """The newest snapshot of this migration that both hosts have; `there` holds the uuids the other host reported.

    On the destination, only one that is `on_disk`. Returns None, too, when the snapshots cannot be read: a base is not
    worth keeping the container frozen for.
    """
    try:
        own = [base for base in layout.bases() if base.path.name.startswith(f"{layout.id}.")]
    except (MigratorError, OSError) as error:
        log.warning(f"Nothing is kept of {layout.name} that the next attempt could start from: {error}")
        return None
    return next((base for base in reversed(own)
                 if base.stream_uuid in there and (on_disk is None or base.uuid in on_disk)), None)


def on_disk(migration: Migration) -> set[str]:
    """On the destination: the local uuids of received snapshots that are known to be on disk with all of their files.

    `btrfs receive` leaves file data to the next sync but makes the snapshot complete and read-only in transactions of
    its own, so after a power cut one that looks complete may have empty files. An import syncs; and making a root file
    system of a snapshot flushes the snapshot's data (btrfs_mksnapshot in the kernel's fs/btrfs/ioctl.c). A snapshot
    that is received again gets a new uuid.
    """
    return {uuid for event in migration.events() if (uuid := event.told.on_disk_uuid)}


def believed(journal: Journal, layout: Layout) -> list[Subvolume]:
    """`Layout.bases` without the snapshots that an attempt abandoned here did not keep.

    A power cut may bring those back after they were removed, but with incomplete files.
    """
    def is_left(path: Path) -> bool:
        came = journal.by_id(path.name.partition(".")[0], Role.DESTINATION)
        given_up = came is not None and came.state in (State.ABANDONING, State.ABANDONED)
        return came is not None and given_up and path.name not in came.copy.kept

    return [base for base in layout.bases() if not is_left(base.path)]


def for_round(layout: Layout, there: Collection[str], its: Collection[str]) -> Subvolume | None:
    """The newest snapshot among `its` (see `usable`) that the other host has too, whichever migration made it."""
    found = [base for base in layout.bases() if base.stream_uuid in there and base.stream_uuid in its]
    return found[-1] if found else None


def paths(migration: Migration) -> list[Path]:
    """The snapshots that an abandoned migration has kept and that still exist."""
    folder = Layout.of(migration).folder
    return [folder / name for name in migration.copy.kept if (folder / name).is_dir()]


def named(migration: Migration, uuid: str) -> list[str]:
    """This migration's own snapshot with that uuid, in the form in which a record lists it."""
    found = common(Layout.of(migration), [uuid])
    return [found.path.name] if found else []


def acknowledged(migration: Migration) -> list[str]:
    """The names of all rounds that the other host has acknowledged: what it may have if it cannot be reached."""
    layout = Layout.of(migration)
    return [layout.snapshot(number).name for number, round_ in enumerate(migration.data.rounds, 1)
            if round_.bytes is not None]


def last_copy(migration: Migration, *, runs: bool = False) -> list[str]:
    """The name of the newest snapshot, for when the container itself is no longer here; logs that it is kept.

    Also used when the container `runs` (was thawed) but its root file system is gone: it was destroyed while frozen,
    for instance after LXC's monitor was killed and LXC therefore called it STOPPED. btrfs keeps such a root file system
    only until the last process ends, and under no name.
    """
    name = migration.name
    found = Layout.of(migration).own_snapshots()[-1:]
    for path in found:
        log.warning(f"{path} is kept, as it may be the last copy of {name}, until:"
                    f" {next_commands.command('cleanup', migration)}")
    if runs and migration.memory:
        log.warning(f"Its root file system is no longer in its place: what {name} writes from now on may be lost"
                    " when it ends")
    return [path.name for path in found]


def last_copies(journal: Journal) -> set[str]:
    """The names of all snapshots on record as a last copy, of any migration; only `cleanup NAME` removes these."""
    return {name for each in journal.all() for name in each.copy.last_copy}


def refuse_another(migration: Migration, stage: str) -> None:
    """On the source: raise OutOfOrder if a dump found the container gone and another one now has its name.

    Whoever carried on would take the last copy for a mere leftover of a round.
    """
    if migration.copy.gone and not origins.is_there(migration):
        raise OutOfOrder(stage=stage, next=next_commands.command("rollback", migration), missing=(
            f"{migration.name} was removed while it was frozen or stopped, and whatever has that name now is another "
            "one"))


def refuse_another_disk(migration: Migration, stage: str) -> None:
    """On the source: raise OutOfOrder if the container of this name has a different root file system from the one sent.

    The origin on record, and the snapshots, are those of the container that the migration began with. The destination
    would mistake the new one for it and drop what may be the last copy. Call this after the preflight, which reports a
    container that does not live in the root file system found in its place.
    """
    if origins.is_another(migration):
        raise OutOfOrder(stage=stage, next=next_commands.command("rollback", migration), missing=(
            f"what is called {migration.name} now has a different root file system than the one that was sent"))


def require_last_copy(migration: Migration) -> None:
    """On the source: raise DiskAway if a dump found the container gone and its snapshots cannot be seen either.

    Whoever carried on would fail to record that one of them may be the last copy.
    """
    if migration.copy.gone:
        require_seen(migration)


def require_seen(migration: Migration) -> None:
    """On the source: raise DiskAway if neither the container nor the place of its snapshots can be seen."""
    layout = Layout.of(migration)
    if not layout.folder.is_dir() and not origins.is_there(migration):
        raise DiskAway(name=layout.name, host_name=next_commands.this_host(), lxcpath=layout.lxcpath,
                       spool=layout.folder, reason=f"{layout.folder} is missing",
                       otherwise=f"Only if that disk is lost for good, with the last copy of {layout.name} that is on"
                                 f" it: mkdir -p {layout.folder}")


def drop(migration: Migration, *, but: Collection[Path] = ()) -> None:
    """Remove what a migration has kept, except for `but`. A last copy is never included."""
    found, last = paths(migration), last_copies(migration.journal)
    for path in found:
        if path not in but and path.name not in last:
            btrfs.delete(path)
    left = [path.name for path in found if path in but]
    if left != list(migration.copy.kept):
        migration.note("base-dropped", kept=left)


def prune(migration: Migration, *, keep: int = 1) -> list[Path]:
    """After success: keep only the newest snapshot, which both hosts have and which the next move can start from.

    Returns the paths removed; with `keep` = 0, the newest one goes as well. Nothing of a different container that used
    to have this name is removed (see `_its_own`), nor anything on record as a last copy: after a forced rollback, two
    copies of one container may have diverged on their hosts.
    """
    layout = Layout.of(migration)
    last, may_go = last_copies(migration.journal), _its_own(migration)
    its = [path for path in layout.snapshots() if path.name not in last and may_go(path)]
    gone = its[:len(its) - keep]
    for path in gone:
        btrfs.delete(path)
    for each in migration.others():
        drop(each, but=paths(each))  # its record lists no more than what is there
    layout.tidy()
    return gone


def _its_own(migration: Migration) -> Callable[[Path], bool]:
    """Returns a test for whether a snapshot is of the container that moves and not of an earlier one of the same name.

    What is left of that earlier container may be its last copy. The same container is recognised by its origin or by
    what btrfs records: made of the same root file system, or the snapshot that this one was received upon, for as long
    as its own snapshots exist. By the latter alone, a caller who is not root can only have removed what that caller
    brought.
    """
    layout, others = Layout.of(migration), migration.others()
    same = {each.id for each in others if origins.are_of_one(each, migration)} | {migration.id}
    his = {each.id for each in others if each.caller == migration.caller}
    beside = {btrfs.info(path).parent_uuid for path in layout.own_snapshots()} | {migration.copy.rootfs_uuid}

    def is_its_own(path: Path) -> bool:
        id_, found = path.name.partition(".")[0], btrfs.info(path)
        near = bool({found.uuid, found.parent_uuid} & (beside - {"", None}))
        return id_ in same or (near and (migration.caller == ROOT.caller or id_ in his))

    return is_its_own


def supersede(migration: Migration) -> None:
    """Drop what earlier attempts between the same two hosts have kept, because both now have a newer base.

    Call it while this migration's own snapshots still exist: they tell which others are of the same container.
    """
    for earlier in _between_the_same(migration):
        drop(earlier)


def settle_late(migration: Migration, uuid: str) -> None:
    """The destination has only now heard of the rollback; it keeps the snapshot `uuid`."""
    kept = named(migration, uuid)
    drop(migration, but=[path for path in paths(migration) if path.name in kept])
    if kept:
        supersede(migration)


def settle(migration: Migration, there: Collection[str]) -> None:
    """A new attempt begins and the other host has reported what it has: drop the bases that it no longer has."""
    for earlier in _between_the_same(migration):
        drop(earlier, but=[path for path in paths(earlier) if btrfs.info(path).stream_uuid in there])


def _between_the_same(migration: Migration) -> Iterable[Migration]:
    """Earlier attempts to move this container (and no other of the same name) that have kept something."""
    other, is_its_own = next_commands.other_host(migration), _its_own(migration)
    for each in migration.others():
        its = next_commands.other_host(each)
        if each.ended and each.copy.kept and its == other and _is_proved(migration, each) and all(
                map(is_its_own, paths(each))):
            yield each


def _is_proved(migration: Migration, earlier: Migration) -> bool:
    """Whether both provably come from the same host, and not only by the name that the holder of a limited key gives.
    """
    caller = migration.caller
    return not caller.startswith(f"{ROOT.caller}:") or earlier.caller == caller


def note(migration: Migration) -> str:
    """A sentence for `migrator status`; "" if nothing is kept."""
    found = paths(migration) if migration.ended else []
    if not found:
        return ""
    other = next_commands.other_host(migration)
    return (f"Kept so that the next move between here and {other} sends only what has changed:"
            f" {', '.join(map(str, found))}. See how large it is, and free it, with:"
            f" {next_commands.command('cleanup', migration)} [--dry-run]")
