# SPDX-License-Identifier: GPL-2.0-or-later
"""Remove what migrations have left on this host.

Without a name: the leftovers of attempts that were rolled back or abandoned, and of commands that were killed. With a
name: also the fenced copy that the container left behind here, and the snapshots that its next move could start from
(it then sends the whole disk); the container itself need no longer exist. A container that runs, or that a migration
still needs, is never touched. With --forget, a name removes no more than would be removed without one: what somebody
may still want is not deleted together with its record.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path

from migrator.base import log, names, printable
from migrator.base.figures import size
from migrator.base.result import Result
from migrator.config import container_config
from migrator.copies import bases
from migrator.errors.containers import AlreadyMigrating, ContainerNotFound
from migrator.errors.this_host import Busy
from migrator.host import btrfs, lxc, network
from migrator.record import next_commands
from migrator.record.image_folders import RUNTIME, former_images, remove_images
from migrator.record.journal import DEFAULT_PATH, Journal, Migration
from migrator.record.migration_paths import FOLDER, WORK, Layout, locked
from migrator.record.states import Role
from migrator.transfer import received_snapshot
from stages.steps import arguments, left_running, moved_copy
from stages.steps.cleaner import Cleaner, records

NAME = "cleanup"
HELP = "remove what migrations have left on this host"


@dataclasses.dataclass(frozen=True)
class CleanupOptions:
    name: str = ""  # "" for what no migration needs any more, of any container
    lxcpath: str | None = None
    keep_copy: bool = False
    forget: bool = False
    dry_run: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_container(parser, required=False)
    parser.add_argument("--keep-copy", action="store_true",
                        help="with a name: remove only the snapshots, and keep the fenced copy and what was put aside")
    parser.add_argument("--forget", action="store_true",
                        help="also remove ended migrations from the journal; with a name, what is kept of it stays")
    parser.add_argument("--dry-run", action="store_true", help="print what would be removed, without removing it")


def options(args: argparse.Namespace) -> CleanupOptions:
    name = arguments.container(args).name if arguments.name_of(args) else ""
    if name and args.forget and args.keep_copy:
        args.usage_error("--keep-copy cannot be combined with --forget, which keeps the snapshots too")
    return CleanupOptions(name, args.lxcpath, args.keep_copy, args.forget, args.dry_run)


def run(options: CleanupOptions) -> Result:
    arguments.require_root(NAME)
    cleaner = Cleaner(dry_run=options.dry_run)
    name, lxcpath = options.name, Path(options.lxcpath) if options.lxcpath else lxc.default_lxcpath()
    path = ["-P", options.lxcpath] if options.lxcpath else []
    until = shlex.join(["migrator", NAME, name, *path]) if name else "cleanup needs the name of its container"
    with Journal(DEFAULT_PATH) as journal:
        with locked(name, lxcpath=lxcpath) if name else contextlib.nullcontext():
            if not name:
                _clean_leftovers(cleaner, journal, lxcpath)
            elif options.forget:
                clean_forgotten(cleaner, journal, name, lxcpath)
            else:
                clean_container(cleaner, journal, name, lxcpath, keep_copy=options.keep_copy)
            cleaner.measure(journal, lxcpath)
            free = btrfs.free_bytes(lxcpath)
        if options.forget and not options.dry_run:
            forget(journal, name, lxcpath if name or options.lxcpath else None)
    verb = "Would remove" if options.dry_run else "Removed"
    sizes = {path: f" ({size(bytes_)})" for path, bytes_ in cleaner.sizes.items()}
    # Anyone inside a container may have given a subvolume any name.
    text = "\n".join(f"{verb} {printable.line(path)}{sizes.get(path, '')}" for path in cleaner.removed)
    kept = "".join(f"\nKept until {until}: {printable.line(path)}" for path in cleaner.kept)
    kept += "".join("\nLeft alone, as it is not migrator's or is in "
                    f"use: {printable.line(path)}" for path in cleaner.left)
    return Result({"removed": cleaner.removed, "kept": cleaner.kept, "left": cleaner.left, "dry_run": options.dry_run,
                   "free_bytes": free, "sizes": cleaner.sizes},
                  f"{text or 'There is nothing to remove.'}{kept}\n{size(free)} free in {lxcpath}.")


def forget(journal: Journal, name: str = "", lxcpath: Path | None = None) -> None:
    """Forget all that has ended, except what someone may still ask about; of one container or all, in one path or any.
    """
    for migration in journal.all(name or None):
        if lxcpath and not names.same_path(migration.lxcpath, lxcpath):
            continue
        keeps = bases.paths(migration) or migration.copy.last_copy or _tells(migration)  # its disk may be away
        if migration.ended and not keeps and not migration.may_be_asked_for:
            journal.forget(migration)
        elif migration.ended and migration.role is Role.DESTINATION and not migration.ending.forgotten:
            migration.note("forgotten", forgotten=True)  # nothing tells any more whether it has left since


def _tells(migration: Migration) -> bool:
    """Whether only this record tells whose the fenced copy in its place is, without which it could not be removed."""
    container = migration.lxcpath / migration.name
    return (container_config.fence_of(moved_copy.config_text(container)) == migration.id
            and not container_config.is_superseded(container))


def _ended(journal: Journal, layout: Layout) -> list[Migration]:
    """All of this container's migrations; raises AlreadyMigrating, and ContainerNotFound if it has left nothing behind.
    """
    found = [each for each in journal.all(layout.name) if names.same_path(each.lxcpath, layout.lxcpath)]
    if not found and not layout.folder.is_dir() and not layout.work.is_dir() and not (
            # a record can be forgotten, and a journal be lost
            container_config.fence_of(moved_copy.config_text(layout.container))):
        raise ContainerNotFound(name=layout.name, lxcpath=layout.lxcpath)
    for each in found:
        if not each.ended:
            raise AlreadyMigrating(name=layout.name, peer=each.peer, id=each.id, next=next_commands.next_command(each),
                                   path=next_commands.path(each))
    return found


def clean_forgotten(cleaner: Cleaner, journal: Journal, name: str, lxcpath: Path) -> None:
    """Before its migrations are forgotten: remove what goes without `cleanup NAME`, and log what stays as an only copy
    may.
    """
    layout = Layout(lxcpath, name, "00000000")
    found = _ended(journal, layout)
    _clean_name(cleaner, journal, layout)
    for id_ in set(network.silenced()) & {each.id for each in found}:
        moved_copy.remove_table(cleaner, journal, id_)
    if moved_copy.is_copy(cleaner, journal, layout):
        cleaner.kept.append(str(layout.container))


def clean_container(cleaner: Cleaner, journal: Journal, name: str, lxcpath: Path, *, keep_copy: bool) -> None:
    layout = Layout(lxcpath, name, "00000000")
    found = _ended(journal, layout)
    cleaner.give_names_back(journal, layout)
    removed = layout.snapshots()
    for path in removed:
        cleaner.remove(path, btrfs.delete)
    for each in found if not cleaner.dry_run else []:
        bases.drop(each)
        last = each.copy.last_copy
        left = [name for name in last if name not in {path.name for path in removed}]  # on a disk that is away
        if left != list(last):
            each.note("last-copy-dropped", last_copy=left)
    if not keep_copy:
        moved_copy.remove_copy(cleaner, journal, layout)
    for folder in (layout.work, layout.folder):
        _clean_folder(cleaner, journal, folder, set(), copies=not keep_copy)
    for id_ in set(network.silenced()) & {each.id for each in found}:
        moved_copy.remove_table(cleaner, journal, id_)
    if not cleaner.dry_run:
        layout.tidy()


def _clean_leftovers(cleaner: Cleaner, journal: Journal, lxcpath: Path) -> None:
    """Files whose names carry the id of a migration that has ended, or that the journal does not know.

    Each id is looked up with its container locked: a migration that begins meanwhile keeps what it makes.
    """
    for path in [*(RUNTIME.iterdir() if RUNTIME.is_dir() else ()), *former_images()]:
        if re.fullmatch(r"[0-9a-f]{8}", path.name):
            _when_ended(journal, path.name, lambda path=path: cleaner.remove(path, remove_images))  # type: ignore[misc]
    for id_ in network.silenced():
        _when_ended(journal, id_, lambda id_=id_: moved_copy.remove_table(cleaner, journal, id_))  # type: ignore[misc]
    root = lxcpath / FOLDER
    found = {path.name.removesuffix(WORK) for path in root.iterdir()} if root.is_dir() else set()
    found |= {each.name for each in journal.all() if each.ended and each.copy.kept}
    for name in sorted(found - {""}):
        try:
            with locked(name, lxcpath=lxcpath):
                _clean_name(cleaner, journal, Layout(lxcpath, name, "00000000"))
        except Busy as error:
            log.warning(f"The leftovers of {name} stay: {error}")


def _clean_name(cleaner: Cleaner, journal: Journal, layout: Layout) -> None:
    """What is left of one container's migrations, with the container locked."""
    cleaner.give_names_back(journal, layout)
    known = journal.all(layout.name)
    alive = {each.id for each in known if not each.ended}
    kept = {each.id for each in known if _keeps_base(each)}
    # By name, which the id makes unique, because an LXC path can be spelled in several ways.
    given_up = {path.name for each in known if each.ended for path in bases.paths(each)
                if each.role is Role.DESTINATION or layout.container.is_dir()}
    last = {name for each in known for name in each.copy.last_copy}
    tell = _that_tell(layout, alive | kept)
    for path in layout.snapshots():
        id_ = path.name.split(".")[0]
        if path.name in last or id_ in tell:
            cleaner.kept.append(str(path))
        elif id_ not in alive | kept and path.name not in given_up:
            cleaner.remove(path, btrfs.delete)
    for folder in (layout.work, layout.folder):  # older versions used the second one for everything
        _clean_folder(cleaner, journal, folder, alive | tell)
    if not cleaner.dry_run:
        layout.tidy()
        for each in known:
            if each.ended and not bases.paths(each) and names.same_path(each.lxcpath, layout.lxcpath):
                bases.drop(each)  # only its record still listed it


def _that_tell(layout: Layout, but: set[str]) -> set[str]:
    """The ids of snapshots that identify a running container.

    The journal may have been lost, and then nothing else keeps the source from running it too.
    """
    ids = {path.name.split(".")[0] for path in layout.snapshots()} - but
    found = {id_ for id_ in ids if left_running.in_own(Layout(layout.lxcpath, layout.name, id_))}
    for id_ in sorted(found):
        log.warning(f"What migration {id_} has brought stays: a container lives in what was made from it, and nothing "
                    "else shows whose that is")
    return found


def _when_ended(journal: Journal, id_: str, remove: Callable[[], None]) -> None:
    """Remove something named by a migration's id if that migration is not in progress, with its container locked.

    A migration is recorded before it makes anything, so anything that exists without a record is nobody's.
    """
    try:
        with contextlib.ExitStack() as stack:
            found = {(each.name, os.path.realpath(each.lxcpath)) for each in records(journal, id_)}
            for name, lxcpath in sorted(found):
                stack.enter_context(locked(name, lxcpath=Path(lxcpath)))
            if all(each.ended for each in records(journal, id_)):
                remove()
    except Busy as error:
        log.warning(f"The leftovers of migration {id_} stay: {error}")


def _keeps_base(migration: Migration) -> bool:
    """Whether a migration's snapshots are still worth keeping: it succeeded, so both hosts have them."""
    return migration.state == "finished"


def _clean_folder(cleaner: Cleaner, journal: Journal, folder: Path, alive: set[str], *, copies: bool = False) -> None:
    """Remove spools, images and put-aside files of migrations that are not alive.

    With `copies`, also what an earlier stay has left if another container has taken its place, and what ran here for a
    moment before its restore failed.
    """
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        match = re.fullmatch(r"([0-9a-f]{8})\.(spool|images|old|folder|ran)(\.[0-9]+)?", path.name)
        rootfs = path if match and match[2] == "ran" else path / "rootfs"
        is_copy = match and (match[2] == "ran" or (match[2] == "old" and any(
            (path / name).exists() for name in ("config", "rootfs"))))
        if match and match[1] not in alive and is_copy and not copies:
            cleaner.kept.append(str(path))
        elif match and match[1] not in alive and not (is_copy and _is_left(cleaner, journal, path, rootfs)):
            cleaner.remove(path, btrfs.delete if match[2] == "ran" else received_snapshot.remove)


def _is_left(cleaner: Cleaner, journal: Journal, path: Path, rootfs: Path) -> bool:
    """For what was put aside as `path`: whether its root file system stays, with what belongs to it.

    A `config` inside something that is itself a root file system is the container's own file and no record.
    """
    name, config = path.parent.name.removesuffix(WORK), path / "config"
    return cleaner.leaves(name, rootfs) or (rootfs != path and config.is_file() and cleaner.leaves_copy(
        journal, path.parents[2] / name, config, rootfs, ["btrfs", "subvolume", "delete", str(rootfs)]))
