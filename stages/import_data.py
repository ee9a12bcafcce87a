# SPDX-License-Identifier: GPL-2.0-or-later
"""Turn what has arrived on this host into a stopped container.

The stream is checked segment by segment against its digests and received into a read-only subvolume, and the
container is defined with its configuration adapted to this host, fenced against being started until it is handed over.
Next comes `migrator create-dump` on the source, or another round of prepare-data if much has changed in the meantime.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

from migrator.base import log, removal
from migrator.base.result import Result, of_dry_run
from migrator.config import container_config, include_copies
from migrator.copies import origins
from migrator.copies.origins import Whose
from migrator.criu import ran_mark
from migrator.errors.containers import ContainerExists, NoMigration, OutOfOrder
from migrator.errors.data import ReceiveFailed, SegmentDamaged
from migrator.errors.documented import DocumentedError
from migrator.host import btrfs, lxc
from migrator.record import clones, grant, lxc_disk, next_commands
from migrator.record.decisions import Verdict, decide
from migrator.record.journal import DEFAULT_PATH, Journal, Migration
from migrator.record.migration_paths import Layout, locked, put
from migrator.record.next_commands import this_host
from migrator.record.states import Event, Role, State
from migrator.remote.answering import Handlers, Service, kept_config
from migrator.transfer import received_snapshot, room_bounds, spool
from migrator.transfer.live_import import Behind
from migrator.transfer.messages import Done, Import
from stages.steps import arguments, arriving_config, room
from stages.steps.options import NamedContainer

NAME = "import-data"
HELP = "receive the disk that has arrived (on the destination)"
REACHING_MAX = 2000  # characters that are kept of what reaches out of the container


@dataclasses.dataclass(frozen=True)
class ImportDataOptions:
    container: NamedContainer
    dry_run: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_container(parser)
    arguments.add_dry_run(parser)


def options(args: argparse.Namespace) -> ImportDataOptions:
    return ImportDataOptions(arguments.container(args), args.dry_run)


def run(options: ImportDataOptions) -> Result:
    arguments.require_root(NAME)
    name, lxcpath = options.container.name, options.container.lxcpath
    with Journal(DEFAULT_PATH) as journal, locked(name, lxcpath=lxcpath):
        migration = arrived(journal, name, lxcpath, NAME)
        decision = decide(NAME, migration.state)
        layout = Layout(migration.lxcpath, name, migration.id)
        next_ = next_commands.command(decision.next_stage, migration) if decision.next_stage else ""
        if decision.verdict is Verdict.ALREADY:
            return Result({"migration": migration.id, "name": name, "stage": NAME, "already": True, "next": next_},
                          f"{name} has already been imported. Next: {next_}")
        if decision.verdict is Verdict.REFUSE:
            raise OutOfOrder(stage=NAME, missing=decision.missing, next=next_)
        if options.dry_run:
            return described(migration)
        return import_round(migration, layout)


def described(migration: Migration) -> Result:
    """For --dry-run."""
    layout = Layout(migration.lxcpath, migration.name, migration.id)
    return of_dry_run([(this_host(), btrfs.receive_command(layout.folder))])


def arrived(journal: Journal, name: str, lxcpath: Path, stage: str) -> Migration:
    """The migration of a container to this host, if that is its newest; raises NoMigration.

    OutOfOrder where it is on its way from here: what it says of an earlier stay would be taken for this move's.
    """
    migration = journal.latest(name, lxcpath)
    if migration and migration.role is Role.SOURCE and not migration.ended:
        raise OutOfOrder(stage=stage, missing=f"this host is the source of {name}",
                         next=next_commands.again(f"{stage}@destination", migration))
    if migration is None or migration.role is Role.SOURCE:
        raise NoMigration(name=name, stage=stage, next=f"migrator prepare-data {name} -d {this_host()}   (on its host)")
    return migration


def import_round(migration: Migration, layout: Layout, behind: Behind | None = None) -> Result:
    """Receive the newest round and define the container. Safe to repeat after it was killed anywhere.

    What `behind` has received while it arrived is not received again.
    """
    number = len(migration.data.rounds)
    migration.move(Event.IMPORT)
    log.info(f"Importing round {number} of {migration.name} (migration {migration.id})")
    file = layout.spool / f"disk-{number}"
    try:
        made = receive(migration, layout, file, number, migration.data.rounds[-1].uuid, behind)
    except (SegmentDamaged, ReceiveFailed):
        spool.drop(file)
        migration.move(Event.RECEIVE)  # it must be sent again
        raise
    with migration.step("define"):
        reaching = define(migration, layout)
    btrfs.sync(layout.folder)  # `btrfs receive` does not; the spooled copy goes, and the last snapshot shall be quick
    migration.move(Event.IMPORTED, reaching=reaching[:REACHING_MAX], on_disk_uuid=made.uuid)
    spool.drop(file)
    next_ = next_commands.next_command(migration)
    return Result({"migration": migration.id, "name": migration.name, "stage": NAME, "already": False,
                   "round": number, "next": next_},
                  f"{migration.name} is defined here and stopped. Next: {next_}")


def receive(migration: Migration, layout: Layout, file: Path, number: int, uuid: str,
            behind: Behind | None = None, left: Callable[[], float] = lambda: btrfs.STREAM_LIMIT) -> btrfs.Subvolume:
    """Receive one spooled stream as the snapshot of round `number`, whose uuid on the source is `uuid`.

    `left` tells how many seconds that may still take. When a stream turns out to be damaged or cannot be received, it
    must be sent again: the migration's state says so.
    """
    target = layout.snapshot(number)
    with migration.step("receive"):
        try:
            if layout.began_formerly():
                raise ReceiveFailed(path=target, reason="an older version of migrator has received it, and kept it in "
                                                        "a different place")
            if not (behind and behind.brought(target, left())):
                leave = room_bounds.for_caller(layout.lxcpath, migration.caller)
                if migration.state is State.IMPORTING:  # else a container stands still, and waits for it
                    leave = max(leave, room_bounds.MARGIN)
                    room.regain(layout, number, leave)
                received_snapshot.receive(spool.verified(file), target, layout.spool, limit=left(), leave=leave)
            found = btrfs.info(target)
            if found.received_uuid != uuid:
                raise ReceiveFailed(path=target, reason=f"it arrived as {found.received_uuid or 'incomplete'}")
        except DocumentedError:
            btrfs.delete(target)
            raise
        return found


def define(migration: Migration, layout: Layout) -> str:
    """Write the container's configuration for this host, fenced: it is not ours to start yet. Returns what reaches out.

    What the fenced copy of an earlier stay here consists of is kept aside until the migration has ended. Where nothing
    is, the folder is made beside and put there as a whole, with its fence. Raises ContainerExists where somebody has
    made a container of that name since the migration began, ConsentNeeded where the configuration that has been kept
    is not one that its sender may bring, and ConfigInvalid where LXC would not read it here as we do.
    """
    carried, bridges = kept_config(layout)
    texts, mapped_root = (carried.text, *carried.includes.values()), migration.begun.mapped_root
    allowed = grant.of_migration(migration)
    for text in texts:
        allowed.check_config(migration.name, text, mapped_root)
    text, copies = arriving_config.adopted(migration, layout, carried, bridges, trusted=allowed.hooks)
    renamed = migration.other_name != migration.name
    origins.refuse_foreign(migration.journal, layout, migration.begun.origin, renamed=renamed)
    folder = layout.container
    if origins.whose(layout) is Whose.NOBODYS:
        folder = layout.beside
        layout.drop_beside()
        folder.mkdir(mode=0o770)  # as lxc-create makes it: a mapped root must get through to its root file system
        if migration.begun.mapped_root:
            os.chown(folder, migration.begun.mapped_root, 0)
    keep_old(layout)
    if not layout.is_own_rootfs():
        _require_room(layout)  # before anything is frozen
    arriving_config.write(layout, folder, text, copies, arriving_message(migration))
    if folder == layout.beside:
        try:
            put(folder, layout.container)
        except FileExistsError as error:
            raise ContainerExists(host_name=this_host(), name=layout.name, lxcpath=layout.lxcpath) from error
    return "; ".join(filter(None, [grant.reaching(text, mapped_root) for text in texts])) if allowed.hooks else ""


def arriving_message(migration: Migration) -> str:
    return (f"{migration.name} is being moved here from {migration.peer} (migration {migration.id}) and must not be"
            f" started by hand. See: {next_commands.command('status', migration)}")


def keep_old(layout: Layout) -> None:
    """Put the configuration of an earlier stay aside, once; `give_back_old` is the way back."""
    if origins.whose(layout) is not Whose.COPY or (layout.old / "config").exists():
        return
    layout.old.mkdir(mode=0o700, exist_ok=True)
    for name in (container_config.FENCE_HOOK, "config"):  # the last one tells that both are there
        if (layout.container / name).is_file():
            _copy(layout.container / name, layout.old / name)


def _copy(source: Path, target: Path) -> None:
    mode = 0o755 if source.name == container_config.FENCE_HOOK else None
    container_config.write_file(target, container_config.text_of(source), mode=mode)


def give_back_old(layout: Layout) -> None:
    """Undo what arriving has changed in the container's place: the earlier stay's files return, or the folder goes.

    Nothing is touched that does not carry this migration's own fence; safe to repeat after a crash anywhere.
    """
    layout.drop_beside()
    found, kept = origins.whose(layout), layout.old / "config"
    if found is not Whose.FOREIGN:
        put_aside(layout)  # it has been: but a power cut can have undone that, and not the record that came after
    if found.may_go and not kept.is_file():
        _remove(layout)
    elif found.may_go or (found is Whose.COPY and kept.is_file() and _is_back(layout)):
        give_back_rootfs(layout)
        if (layout.old / "rootfs").exists():
            log.warning(f"{layout.rootfs} was not made by migration {layout.id}: it stays, and what an earlier stay of"
                        f" {layout.name} has left there is in {layout.old}")
            return
        for name in (container_config.FENCE_HOOK, "config"):  # with the last one it is the earlier stay's again
            if (layout.old / name).is_file():
                _copy(layout.old / name, layout.container / name)
        include_copies.drop(layout.container, layout.id)
    elif layout.old.exists() and kept.is_file():
        log.warning(f"{layout.container} is another container now; what an earlier stay of {layout.name} has left"
                    f" there is in {layout.old}")
        return
    removal.tree(layout.old)


def _is_back(layout: Layout) -> bool:
    """Whether the earlier stay's configuration is in its place, changed or not yet, or again."""
    return (layout.old / "config").read_bytes() == (layout.container / "config").read_bytes()


def _remove(layout: Layout) -> None:
    """The folder that this migration has made: as a whole out of its place first.

    Where somebody has put something into it, or mounted something there, that stays, in its place.
    """
    if layout.rootfs.exists() and not layout.is_own_rootfs():
        log.warning(f"{layout.rootfs} was not made by migration {layout.id}: {layout.container} stays")
        return
    if container_config.strange_in(layout.container, layout.id) or removal.mounts_in(layout.rootfs):
        btrfs.delete(layout.rootfs)
        container_config.remove(layout.container, layout.id)
        return
    layout.make_folder()  # where an older version has begun it there is none yet
    put(layout.container, layout.beside)
    layout.drop_beside()


def put_aside(layout: Layout) -> None:
    """Its root file system, if it may have run, and does not: what is in its place must be ours."""
    if ran_mark.was(ran_mark.mark(layout.spool)) and layout.is_own_rootfs():
        kept = layout.aside()
        layout.rootfs.rename(kept)
        log.warning(f"{layout.name} may have run here for a moment; what it has written is kept in {kept}")


def give_back_rootfs(layout: Layout) -> None:
    """Take away what this migration has put in the root file system's place; that of an earlier stay returns."""
    if layout.is_own_rootfs():
        btrfs.delete(layout.rootfs)
    old = layout.old / "rootfs"
    if old.exists() and not layout.rootfs.exists():
        old.rename(layout.rootfs)


def put_rootfs_aside(layout: Layout) -> None:
    """Make room for what has arrived: that of an earlier stay, as `keep_old` has found it, is kept.

    Raises ContainerExists where anything else is there, or the container's place is not ours any more.
    """
    origins.require_ours(layout)
    if btrfs.is_subvolume(layout.rootfs):
        _require_room(layout)
        layout.rootfs.rename(layout.old / "rootfs")


def _require_room(layout: Layout) -> None:
    """Raises ContainerExists where the root file system's place has what is not that of the earlier stay, or works.

    HasClones where clones lie on it.
    """
    if btrfs.is_subvolume(layout.rootfs):
        config = layout.old / "config"
        if not config.is_file() or (layout.old / "rootfs").exists() or (
                container_config.rootfs_elsewhere(config, layout.rootfs)) or lxc.lives_in(layout.name, layout.rootfs):
            raise ContainerExists(host_name=this_host(), name=layout.name, lxcpath=layout.lxcpath)
        clones.refuse(layout)


def drop_attempt(migration: Migration, layout: Layout) -> None:
    """Remove everything that this migration has brought to this host, except what it keeps.

    Raises DiskAway where something of it may lie on its disk, and that is not there.
    """
    on_disk = bool(migration.data.on_disk)
    with lxc_disk.held(layout) if on_disk else contextlib.nullcontext():
        layout.drop_images()
        received_snapshot.clear(layout.folder, layout.spool)
        give_back_old(layout)
        if layout.former_old.is_dir():
            log.warning("An older version of migrator began this: what it has put aside of an earlier stay of"
                        f" {layout.name} is in {layout.former_old}")
        for path in layout.own_snapshots():
            if path.name not in migration.copy.kept:
                btrfs.delete(path)
    if on_disk:  # nothing but the spool is left, and this may be repeated
        migration.note("disk", on_disk=False)
    layout.drop_spool()
    layout.tidy()


# --- for a source that does all at once -----------------------------------------------------------------------


def import_(service: Service, asked: Import) -> Done:
    """import-data over the source's own connection."""
    migration = service.migration(asked.id)
    decision = decide(NAME, migration.state)
    if decision.verdict is Verdict.REFUSE:
        raise OutOfOrder(stage=NAME, missing=decision.missing,
                         next=next_commands.command(decision.next_stage, migration))
    if decision.verdict is Verdict.GO:
        service.refuse_more(migration)
        import_round(migration, Layout(migration.lxcpath, migration.name, migration.id), service.behind)
    return Done(state=migration.state)


HANDLERS: Handlers = {Import: import_}
