# SPDX-License-Identifier: GPL-2.0-or-later
"""Which container a copy belongs to, given that it may have had a different name on each host it has been on.

A container's *origin* is the id of its first migration. It travels along with each later one, so that a host to which a
container returns recognises the fenced copy of the earlier stay. So do the ids of its *moves* since then, which tell
whether what comes back descends from that copy.
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

MOVES_MAX = 100  # how many ids travel along, latest first; a copy left by an older move is put aside


class Whose(enum.StrEnum):
    """Whose container is in the place of the one that moves; see `whose`. No I/O."""

    NOBODYS = "nobody's"  # there is none
    OURS = "ours"  # it carries this migration's fence
    COPY = "copy"  # fenced by another migration: the container has been here and has moved away
    FOREIGN = "foreign"  # anything else

    @property
    def may_go(self) -> bool:
        """Whether it may be removed, overwritten, ended or started on behalf of this migration."""
        return self is Whose.OURS

    @property
    def may_be_taken(self) -> bool:
        """Whether the container may be put there; a copy is put aside. `refuse_foreign` knows which copies may be."""
        return self is not Whose.FOREIGN


def whose(layout: Layout) -> Whose:
    """What is in the container's place right now. Call with the container locked, and act on the answer at once."""
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
    """Raise ContainerNotFound or ContainerExists unless what has arrived is still there and no other container is."""
    found = whose(layout)
    if found is Whose.NOBODYS:
        raise ContainerNotFound(name=layout.name, lxcpath=layout.lxcpath)
    if not found.may_go:
        raise ContainerExists(host_name=this_host(), name=layout.name, lxcpath=layout.lxcpath)


def is_source(migration: Migration) -> bool:
    """On the source: whether the container of this name is still the one that the migration began with.

    From the offer on it has the migration's fence. If that was removed by hand, its root file system tells: by the uuid
    recorded when it was frozen or stopped, or by the snapshots. Raises ContainerNotFound.
    """
    layout = Layout.of(migration)
    if whose(layout) is Whose.OURS:
        return True
    rootfs = lxc.Container(migration.name, migration.lxcpath).rootfs
    return btrfs.is_subvolume(rootfs) and btrfs.info(rootfs).uuid in source_uuids(migration)


def has_source_disk(migration: Migration) -> bool:
    """On the source: as `is_source`, but a snapshot of its root file system, or one of such a snapshot, counts as well.

    That is what is in its place after someone has gone back to an earlier state (lxc-snapshot -r). To its users it is
    still the container, and it must not run while its destination may run it. But that person made it, so it must not
    be ended or removed. Raises ContainerNotFound, OSError.
    """
    if is_source(migration):
        return True
    rootfs = lxc.Container(migration.name, migration.lxcpath).rootfs
    its = migration.copy.rootfs_uuid  # the only thing by which cleanup tells it from the copy that was left here
    return bool(its) and btrfs.is_subvolume(rootfs) and its in subvolume_uuids.ancestors(rootfs)


def source_uuids(migration: Migration) -> set[str]:
    """On the source: the uuids that its root file system may have; empty if nothing tells any more."""
    snapshots = Layout.of(migration).own_snapshots()
    return ({btrfs.info(path).parent_uuid for path in snapshots} | {migration.copy.rootfs_uuid}) - {""}


def is_another(migration: Migration) -> bool:
    """On the source: whether the container of this name has another root file system than its rounds; False if unknown.

    It was created anew under that name, or someone has gone back to an earlier snapshot.
    """
    with contextlib.suppress(MigratorError, OSError):
        rootfs, its = lxc.Container(migration.name, migration.lxcpath).rootfs, source_uuids(migration)
        return bool(its) and btrfs.is_subvolume(rootfs) and btrfs.info(rootfs).uuid not in its
    return False


def remember(migration: Migration) -> None:
    """On the source: record what identifies the absent container, before the snapshots that tell it are removed."""
    with contextlib.suppress(MigratorError, OSError):
        if not migration.copy.rootfs_uuid and is_source(migration):
            found = btrfs.info(lxc.Container(migration.name, migration.lxcpath).rootfs).uuid
            migration.learn(rootfs_uuid=found)  # in memory, too, in case the journal cannot be written now
            migration.note("root file system", rootfs_uuid=found)


def is_there(migration: Migration) -> bool:
    """On the source: whether the container is certainly still in its place, with its disk; False if that is unknown.

    A fence does not prove that: someone may have put another root file system behind it.
    """
    try:
        if not is_source(migration):
            return False
        rootfs, its = lxc.Container(migration.name, migration.lxcpath).rootfs, source_uuids(migration)
        return rootfs.is_dir() and (not its or (btrfs.is_subvolume(rootfs) and btrfs.info(rootfs).uuid in its))
    except (MigratorError, OSError):
        return False


def name_there(wanted: str, migration: Migration | None, name: str) -> str:
    """The name that the container `name` gets on the destination: `wanted`, or "" for the same name.

    Raises UsageError if an earlier round has already settled on another one.
    """
    if migration is None:
        return wanted or name
    known = migration.other_name
    if wanted and wanted != known:
        raise UsageError(reason=f"migration {migration.id} has begun to bring {name} there as {known}")
    return known


def origin(journal: Journal, name: str, lxcpath: Path) -> str:
    """The origin of a container on this host; "" if it has never moved, or was created since under that name.

    A container that gives way to an origin may be an only copy, so a name alone never earns an origin. Neither does a
    copy that is in use again although its container has left it, or although it may run elsewhere since this host was
    forced to take it back: what the other host has may be newer.
    """
    found = brought(journal, name, lxcpath)
    return _origin(found) if found else ""


def brought(journal: Journal, name: str, lxcpath: Path) -> Migration | None:
    """The migration that brought the container to this host, if it has not left since; None in the cases of `origin`.
    """
    for each in reversed(journal.all(name)):
        if not names.same_path(each.lxcpath, lxcpath):
            continue
        if each.role is Role.DESTINATION:
            arrived = each.state in (State.RESTORED, State.FINISHED) and not each.arrived.given_way
            told = arrived and not each.ending.forgotten  # otherwise nobody knows whether it has left since
            return each if told and has_its_own(each) else None
        unheard = each.owes or each.ending.forgotten_there  # otherwise what ran elsewhere has given way
        if each.state is State.FINISHED or (each.ending.forced and unheard):
            return None
    return None


def moves(came: Migration | None) -> list[str]:
    """The migrations by which a container got to where it is, for its next host; `came` is the last one, see `brought`.

    If an older version did not pass on what came before, the list begins with that migration.
    """
    return [*(came.begun.moves or []), came.id][-MOVES_MAX:] if came else []


def rootfs_uuid(migration: Migration) -> str:
    """The uuid of the root file system that this migration brought here; "" if it is no longer in its place."""
    layout = Layout.of(migration)
    return btrfs.info(layout.rootfs).uuid if layout.is_own_rootfs() else ""


def has_its_disk(migration: Migration) -> bool:
    """Whether the root file system in its place is what this migration brought here, or a snapshot descended from that.

    A snapshot is there after someone has gone back to an earlier state: to its users it is still the container. But
    that person made it, so it must not be removed. Raises OSError.
    """
    layout = Layout.of(migration)
    if layout.is_own_rootfs() or not btrfs.is_subvolume(layout.rootfs):
        return layout.is_own_rootfs()
    made = {btrfs.info(path).uuid for path in layout.own_snapshots()} | {migration.copy.rootfs_uuid}
    return any(uuid in made for uuid in (btrfs.info(layout.rootfs).uuid, *subvolume_uuids.ancestors(layout.rootfs)))


def has_its_own(migration: Migration) -> bool:
    """Whether its place holds the very root file system that this migration made here.

    Told by the snapshot it was made of, or by its uuid, which is on record because snapshots get removed.
    """
    layout = Layout.of(migration)
    if layout.is_own_rootfs() or not btrfs.is_subvolume(layout.rootfs):
        return layout.is_own_rootfs()
    return btrfs.info(layout.rootfs).uuid in recorded_rootfs_uuids(migration)


def recorded_rootfs_uuids(migration: Migration) -> set[str]:
    """On the destination: the root file systems that this migration is on record as having made."""
    made = [event.told.rootfs_uuid for event in migration.events() if event.step == "rootfs"]
    return {uuid for uuid in (migration.copy.rootfs_uuid, *made[-1:]) if uuid}


def _origin(migration: Migration) -> str:
    return migration.begun.origin or migration.id


def are_of_one(one: Migration, other: Migration) -> bool:
    """Whether two migrations are of the same container, by its origin."""
    return _origin(one) == _origin(other)


def is_own_copy(journal: Journal, layout: Layout, origin: str, *, renamed: bool) -> bool:
    """Whether what `layout` names here is the container that is coming, or the fenced copy of its earlier stay.

    Under the same name every fenced copy counts as such; under a new name it could be another container's.
    """
    found = whose(layout)
    if found is not Whose.COPY or not renamed:
        return found in (Whose.OURS, Whose.COPY)
    went = left_by(journal, layout.container / "config")
    return went is not None and bool(origin) and _origin(went) == origin


def is_superseded(migration: Migration, config: Path) -> bool:
    """Whether the fenced copy with this configuration is of the container that `migration` is bringing back.

    Told by the record of how it left, whose origin identifies it: a name or a fence alone proves nothing. It must also
    have come back by way of that very move. Otherwise a host was reset to an earlier state (a virtual machine's
    snapshot, say) and this copy may be the newer one. Older versions do not report the way it came.
    """
    went, told = left_by(migration.journal, config), migration.begun.moves
    return (went is not None and went.state is State.FINISHED and went.name == migration.name
            and are_of_one(went, migration) and (told is None or went.id in told))


def is_another_disk(journal: Journal, config: Path, rootfs: Path) -> bool:
    """Whether a different subvolume is behind the fence in `config` from the one that its migration left here.

    Someone has put it there, even if it is just a snapshot of the old one, and nothing shows that another host has its
    contents. The fence says which subvolume it was, even when the record has been forgotten; older versions noted it in
    neither.
    """
    fence = container_config.fence_of(config.read_text(errors="replace"))
    records = [journal.by_id(fence, role) for role in Role]
    left = {container_config.disk_of(config.parent), *(each.copy.rootfs_uuid for each in records if each)}
    left -= {None, ""}
    return bool(left) and btrfs.is_subvolume(rootfs) and btrfs.info(rootfs).uuid not in left


def left_by(journal: Journal, config: Path) -> Migration | None:
    """The record of the migration by which the copy behind the fence in `config` left this host."""
    return journal.by_id(container_config.fence_of(config.read_text(errors="replace")), Role.SOURCE)


def is_of(journal: Journal, snapshot: Path, origin: str) -> bool:
    """Whether a snapshot kept by migrations was made or received by one that moved the container of that origin."""
    id_ = snapshot.name.partition(".")[0]
    found = [journal.by_id(id_, role) for role in (Role.SOURCE, Role.DESTINATION)]
    return any(each and _origin(each) == origin for each in found)


def refuse_foreign(journal: Journal, layout: Layout, origin: str, *, renamed: bool) -> None:
    """Raise ContainerExists if anything of that name is here but the stopped, fenced copy of one that moved away.

    Also if the place of its root file system is taken by another while the copy's own lies elsewhere, because nobody
    knows whose it is. Raises HasClones if clones depend on what would be moved out of the way.
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
    """Whether a fenced copy is running all the same; LXC may know it by another spelling of its path, or not at all."""
    container = lxc.Container(layout.name, layout.lxcpath)
    return container.state != "STOPPED" or lxc.lives_in(layout.name, container.rootfs)


def _has_another(layout: Layout) -> bool:
    """Whether a subvolume is where the root file system would go that is not that of the container there."""
    return btrfs.is_subvolume(layout.rootfs) and bool(
        container_config.rootfs_elsewhere(layout.container / "config", layout.rootfs))
