# SPDX-License-Identifier: GPL-2.0-or-later
"""Which container a copy is of: it may have had another name on each host that it has been on.

A container's *origin* is the id of its first migration. It travels along with each later one, so that a host which a
container comes back to knows the fenced copy of its earlier stay by it. So do the ids of its *moves* since then, which
tell whether what comes back has come of that copy.
"""

from __future__ import annotations

import contextlib
import enum
import os
from pathlib import Path

from migrator.base import names
from migrator.config import container_config, fences
from migrator.errors import MigratorError, UsageError
from migrator.errors.containers import ContainerExists, ContainerNotFound
from migrator.host import btrfs, lxc, subvolume_uuids
from migrator.record import clones
from migrator.record.journal import Journal, Migration
from migrator.record.migration_paths import Layout
from migrator.record.next_commands import this_host
from migrator.record.states import Role, State

MOVES_MAX = 100  # ids that travel along, of the latest moves: a copy that was left before these is put aside


class Whose(enum.StrEnum):
    """Whose what stands in a container's place is, for one migration; without I/O, see `whose`."""

    NOBODYS = "nobody's"  # there is nothing
    OURS = "ours"  # it carries this migration's fence
    COPY = "copy"  # another one's keeps it from being started: the container has been here, and has moved away
    FOREIGN = "foreign"  # anything else

    @property
    def may_go(self) -> bool:
        """It may be removed, overwritten, ended or started on behalf of this migration."""
        return self is Whose.OURS

    @property
    def may_be_taken(self) -> bool:
        """The container may be put there; a copy is kept aside. Which copies may, `refuse_foreign` knows."""
        return self is not Whose.FOREIGN


def whose(layout: Layout) -> Whose:
    """What stands in the container's place at this moment. Ask with the container locked, and act at once."""
    if not os.path.lexists(layout.container):
        return Whose.NOBODYS
    config = layout.container / "config"
    text = config.read_text(errors="replace") if config.is_file() else ""
    fence = container_config.fence_of(text)
    if not fence:
        return Whose.FOREIGN
    if fence == layout.id:
        return Whose.OURS
    return Whose.COPY if fences.refuses(layout.container, text) else Whose.FOREIGN


def require_ours(layout: Layout) -> None:
    """Raises ContainerNotFound and ContainerExists unless what has arrived is still there, and no other container."""
    found = whose(layout)
    if found is Whose.NOBODYS:
        raise ContainerNotFound(name=layout.name, lxcpath=layout.lxcpath)
    if not found.may_go:
        raise ContainerExists(host_name=this_host(), name=layout.name, lxcpath=layout.lxcpath)


def is_source(migration: Migration) -> bool:
    """On the source: whether what is called so is still the container that the migration was begun with.

    From the offer on it has the migration's fence; should that have been taken away by hand, its root file system tells
    it: by what was recorded when it was brought to a stand, or by the snapshots. Raises ContainerNotFound.
    """
    layout = Layout(migration.lxcpath, migration.name, migration.id)
    if whose(layout) is Whose.OURS:
        return True
    rootfs = lxc.Container(migration.name, migration.lxcpath).rootfs
    return btrfs.is_subvolume(rootfs) and btrfs.info(rootfs).uuid in source_uuids(migration)


def has_source_disk(migration: Migration) -> bool:
    """On the source: the same, or a snapshot of that root file system, or a snapshot of one, stands in its place.

    As where somebody has gone back to what he had put by (lxc-snapshot -r): by all that its users know it is still the
    container, and must not run while its destination may run it. But that he has made, so it is nothing that may be
    ended or removed. Raises ContainerNotFound, OSError.
    """
    if is_source(migration):
        return True
    rootfs = lxc.Container(migration.name, migration.lxcpath).rootfs
    its = migration.copy.rootfs_uuid  # by which alone cleanup tells it from what has left
    return bool(its) and btrfs.is_subvolume(rootfs) and its in subvolume_uuids.ancestors(rootfs)


def source_uuids(migration: Migration) -> set[str]:
    """On the source: which one is its root file system's; none where nothing tells that any more."""
    snapshots = Layout(migration.lxcpath, migration.name, migration.id).own_snapshots()
    return ({btrfs.info(path).parent_uuid for path in snapshots} | {migration.copy.rootfs_uuid}) - {""}


def is_another(migration: Migration) -> bool:
    """On the source: whether what is called so has another root file system than its rounds; False if not told.

    It was made anew under that name, or somebody has gone back to what he had put by.
    """
    with contextlib.suppress(MigratorError, OSError):
        rootfs, its = lxc.Container(migration.name, migration.lxcpath).rootfs, source_uuids(migration)
        return bool(its) and btrfs.is_subvolume(rootfs) and btrfs.info(rootfs).uuid not in its
    return False


def remember(migration: Migration) -> None:
    """On the source: record what tells the container, where it is not, before the snapshots go that have told it."""
    with contextlib.suppress(MigratorError, OSError):
        if not migration.copy.rootfs_uuid and is_source(migration):
            found = btrfs.info(lxc.Container(migration.name, migration.lxcpath).rootfs).uuid
            migration.learn(rootfs_uuid=found)  # also where the journal cannot be written now
            migration.note("root file system", rootfs_uuid=found)


def is_there(migration: Migration) -> bool:
    """On the source: whether the container is certainly still in its place, with its disk; False if not told.

    A fence does not tell that: behind it somebody may have put another root file system.
    """
    try:
        if not is_source(migration):
            return False
        rootfs, its = lxc.Container(migration.name, migration.lxcpath).rootfs, source_uuids(migration)
        return rootfs.is_dir() and (not its or (btrfs.is_subvolume(rootfs) and btrfs.info(rootfs).uuid in its))
    except (MigratorError, OSError):
        return False


def name_there(wanted: str, migration: Migration | None, name: str) -> str:
    """What the container `name` is called on the destination: `wanted`, or "" for its own.

    Raises UsageError where that is settled otherwise.
    """
    if migration is None:
        return wanted or name
    known = migration.other_name
    if wanted and wanted != known:
        raise UsageError(reason=f"migration {migration.id} has begun to bring {name} there as {known}")
    return known


def origin(journal: Journal, name: str, lxcpath: Path) -> str:
    """The origin of a container on this host; "" when it has never moved, as one that was made since under that name.

    What gives way to an origin may be the only copy of a container, so it is nobody's for a name alone. Nor is it that
    of a copy which is used again though its container has left it, or may run elsewhere since this host was forced to
    take it back: what another host has may be newer.
    """
    found = brought(journal, name, lxcpath)
    return _origin(found) if found else ""


def brought(journal: Journal, name: str, lxcpath: Path) -> Migration | None:
    """By which migration the container on this host has come, and has not left since; None as for `origin`."""
    for each in reversed(journal.all(name)):
        if not names.same_path(each.lxcpath, lxcpath):
            continue
        if each.role is Role.DESTINATION:
            arrived = each.state in (State.RESTORED, State.FINISHED) and not each.arrived.given_way
            told = arrived and not each.ending.forgotten  # else nobody knows whether it has left since
            return each if told and has_its_own(each) else None
        unheard = each.owes or each.ending.forgotten_there  # else what ran elsewhere has given way
        if each.state is State.FINISHED or (each.ending.forced and unheard):
            return None
    return None


def moves(came: Migration | None) -> list[str]:
    """By which migrations a container has come to where it is, for its next host; `came` is the last, see `brought`.

    Where an older version has not said what was before that, they begin with it.
    """
    return [*(came.begun.moves or []), came.id][-MOVES_MAX:] if came else []


def rootfs_uuid(migration: Migration) -> str:
    """That of the root file system which this migration has brought here; "" where it is not in its place any more."""
    layout = Layout(migration.lxcpath, migration.name, migration.id)
    return btrfs.info(layout.rootfs).uuid if layout.is_own_rootfs() else ""


def has_its_disk(migration: Migration) -> bool:
    """Whether in its place stands the root file system that this migration has brought here, or a snapshot of that.

    Or a snapshot of one, as where somebody has gone back to what he had put by: by all that its users know it is still
    the container. But that he has made, so it is nothing that may be removed. Raises OSError.
    """
    layout = Layout(migration.lxcpath, migration.name, migration.id)
    if layout.is_own_rootfs() or not btrfs.is_subvolume(layout.rootfs):
        return layout.is_own_rootfs()
    made = {btrfs.info(path).uuid for path in layout.own_snapshots()} | {migration.copy.rootfs_uuid}
    return any(uuid in made for uuid in (btrfs.info(layout.rootfs).uuid, *subvolume_uuids.ancestors(layout.rootfs)))


def has_its_own(migration: Migration) -> bool:
    """Whether in its place stands the very root file system that this migration has made here.

    By the snapshot that it was made of, or its uuid, which is on record since: snapshots are removed.
    """
    layout = Layout(migration.lxcpath, migration.name, migration.id)
    if layout.is_own_rootfs() or not btrfs.is_subvolume(layout.rootfs):
        return layout.is_own_rootfs()
    return btrfs.info(layout.rootfs).uuid in recorded_rootfs_uuids(migration)


def recorded_rootfs_uuids(migration: Migration) -> set[str]:
    """On the destination: which root file system this migration has made, for all that is on record."""
    made = [event.told.rootfs_uuid for event in migration.events() if event.step == "rootfs"]
    return {uuid for uuid in (migration.copy.rootfs_uuid, *made[-1:]) if uuid}


def _origin(migration: Migration) -> str:
    return migration.begun.origin or migration.id


def are_of_one(one: Migration, other: Migration) -> bool:
    """Whether two migrations are of the same container, by its origin."""
    return _origin(one) == _origin(other)


def is_own_copy(journal: Journal, layout: Layout, origin: str, *, renamed: bool) -> bool:
    """Whether what `layout` names here is the container that comes, or the fenced copy of its earlier stay.

    Under the same name every fenced copy counts as that. Under a new one it could be another container's.
    """
    found = whose(layout)
    if found is not Whose.COPY or not renamed:
        return found in (Whose.OURS, Whose.COPY)
    went = left_by(journal, layout.container / "config")
    return went is not None and bool(origin) and _origin(went) == origin


def is_superseded(migration: Migration, config: Path) -> bool:
    """Whether the fenced copy with this configuration is of the container that `migration` brings, on its way back.

    By the record of how it left, which an origin makes its own: a name alone, or a fence, proves that to nobody. And
    only if it has come back by way of that. Else a host was put back as it had been before (a snapshot of a virtual
    machine, say), and this copy may be the newer one. Older versions do not say by which way it has come.
    """
    went, told = left_by(migration.journal, config), migration.begun.moves
    return (went is not None and went.state is State.FINISHED and went.name == migration.name
            and are_of_one(went, migration) and (told is None or went.id in told))


def is_another_disk(journal: Journal, config: Path, rootfs: Path) -> bool:
    """Whether behind the fence in `config` stands another subvolume than the one that its migration has left here.

    Somebody has put it there, be it only a snapshot of that one: nothing tells that another host has what is in it.
    The fence tells which one it was also where the record is forgotten; older versions have told it in neither.
    """
    fence = container_config.fence_of(config.read_text(errors="replace"))
    records = [journal.by_id(fence, role) for role in Role]
    left = {container_config.disk_of(config.parent), *(each.copy.rootfs_uuid for each in records if each)}
    left -= {None, ""}
    return bool(left) and btrfs.is_subvolume(rootfs) and btrfs.info(rootfs).uuid not in left


def left_by(journal: Journal, config: Path) -> Migration | None:
    """The record by which the copy behind the fence in `config` has left here."""
    return journal.by_id(container_config.fence_of(config.read_text(errors="replace")), Role.SOURCE)


def is_of(journal: Journal, snapshot: Path, origin: str) -> bool:
    """Whether a snapshot that migrations keep was made or received by one of the container with that origin."""
    id_ = snapshot.name.partition(".")[0]
    found = [journal.by_id(id_, role) for role in (Role.SOURCE, Role.DESTINATION)]
    return any(each and _origin(each) == origin for each in found)


def refuse_foreign(journal: Journal, layout: Layout, origin: str, *, renamed: bool) -> None:
    """A container of that name may be here only as the stopped, fenced copy of one that has moved away.

    Nor may its root file system's place have another, where that copy's lies elsewhere: nobody knows whose it is. And
    none may be moved away under clones. Raises ContainerExists, HasClones.
    """
    found = whose(layout)
    if found is Whose.NOBODYS:
        return
    if not is_own_copy(journal, layout, origin, renamed=renamed) or (
            found is Whose.COPY and (_lives(layout) or _has_another(layout))):
        raise ContainerExists(host_name=this_host(), name=layout.name, lxcpath=layout.lxcpath)
    if found is Whose.COPY:
        clones.refuse(layout)


def _lives(layout: Layout) -> bool:
    """Whether a fenced copy is at work all the same; LXC may know it by another spelling of its path, or not at all."""
    container = lxc.Container(layout.name, layout.lxcpath)
    return container.state != "STOPPED" or lxc.lives_in(layout.name, container.rootfs)


def _has_another(layout: Layout) -> bool:
    """Whether a subvolume is where a root file system would come to lie, and is not that of the container there."""
    return btrfs.is_subvolume(layout.rootfs) and bool(
        container_config.rootfs_elsewhere(layout.container / "config", layout.rootfs))
