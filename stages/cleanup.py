# SPDX-License-Identifier: GPL-2.0-or-later
"""Remove what migrations have left on this host.

Without a name: the remains of attempts that were rolled back or abandoned, and of commands that were killed. With a
name: also the fenced copy that the container left behind here, and the snapshots that its next move could start from
(which then is a full one). A container that runs, or that a migration still needs, is never touched.
"""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from migrator import advice, btrfs, cli, container_config, lxc
from migrator.cli import Result
from migrator.errors import AlreadyMigrating, ContainerNotFound
from migrator.journal import DEFAULT_PATH, Journal, Migration
from migrator.layout import FOLDER, RUNTIME, WORK, Layout, locked, remove_images
from migrator.report import size

NAME = "cleanup"
HELP = "remove what migrations have left on this host"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    cli.add_container(parser, required=False)
    parser.add_argument("--keep-copy", action="store_true",
                        help="with a name: remove only the snapshots, keep the fenced copy")
    parser.add_argument("--forget", action="store_true", help="remove ended migrations from the journal too")
    parser.add_argument("--dry-run", action="store_true", help="print what would be removed, and remove nothing")


class Cleaner:
    """Removes things, or only tells what it would remove."""

    def __init__(self, *, dry_run: bool) -> None:
        self.dry_run = dry_run
        self.removed: list[str] = []

    def remove(self, path: Path, how: Callable[[Path], None]) -> None:
        self.removed.append(str(path))
        if not self.dry_run:
            how(path)


def run(args: argparse.Namespace) -> Result:
    cli.require_root(NAME)
    cleaner = Cleaner(dry_run=args.dry_run)
    with Journal(DEFAULT_PATH) as journal:
        if args.name:
            name, lxcpath = cli.container_of(args)
            with locked(name):
                clean_container(cleaner, journal, name, lxcpath, keep_copy=args.keep_copy)
                free = btrfs.free_bytes(lxcpath)
        else:
            lxcpath = Path(args.lxcpath) if args.lxcpath else lxc.default_lxcpath()
            _clean_leftovers(cleaner, journal, lxcpath)
            free = btrfs.free_bytes(lxcpath)
        if args.forget and not args.dry_run:
            for migration in journal.all(args.name):
                if migration.ended and not migration.owes:
                    journal.forget(migration)
    verb = "Would remove" if args.dry_run else "Removed"
    text = "\n".join(f"{verb} {path}" for path in cleaner.removed) or "There is nothing to remove."
    return Result({"removed": cleaner.removed, "dry_run": args.dry_run, "free_bytes": free},
                  f"{text}\n{size(free)} are free in {lxcpath}.")


def clean_container(cleaner: Cleaner, journal: Journal, name: str, lxcpath: Path, *, keep_copy: bool) -> None:
    migration = journal.latest(name, lxcpath)
    if migration is None:
        raise ContainerNotFound(name=name, lxcpath=lxcpath)
    if not migration.ended:
        raise AlreadyMigrating(name=name, peer=migration.peer, id=migration.id, next=advice.next_command(migration))
    layout = Layout(lxcpath, name, migration.id)
    for path in layout.snapshots():
        cleaner.remove(path, btrfs.delete)
    if not keep_copy and _is_fenced_copy(layout):
        container = lxc.Container(name, lxcpath)
        rootfs = container.rootfs
        if container.state == "STOPPED":
            if btrfs.is_subvolume(rootfs):
                cleaner.remove(rootfs, btrfs.delete)
            cleaner.remove(layout.container, shutil.rmtree)
    _clean_folder(cleaner, layout.work, {migration.id} if not migration.ended else set())
    if not cleaner.dry_run:
        layout.tidy()


def _is_fenced_copy(layout: Layout) -> bool:
    config = layout.container / "config"
    return config.is_file() and bool(container_config.fence_of(config.read_text(errors="replace")))


def _clean_leftovers(cleaner: Cleaner, journal: Journal, lxcpath: Path) -> None:
    """Things whose names carry the id of a migration that has ended, or that the journal does not know."""
    alive = {migration.id for migration in journal.all() if not migration.ended}
    kept = {migration.id for migration in journal.all() if _keeps_base(migration)}
    for path in RUNTIME.iterdir() if RUNTIME.is_dir() else ():
        if re.fullmatch(r"[0-9a-f]{8}", path.name) and path.name not in alive:
            cleaner.remove(path, remove_images)
    root = lxcpath / FOLDER
    for name in sorted({path.name.removesuffix(WORK) for path in root.iterdir()} if root.is_dir() else ()):
        with locked(name):
            layout = Layout(lxcpath, name, "00000000")
            for path in layout.snapshots():
                if path.name.split(".")[0] not in alive | kept:
                    cleaner.remove(path, btrfs.delete)
            _clean_folder(cleaner, layout.work, alive)
            if not cleaner.dry_run:
                layout.tidy()


def _keeps_base(migration: Migration) -> bool:
    """Whether a migration's snapshots are still worth keeping: it has succeeded, so both hosts have them."""
    return migration.state == "finished"


def _clean_folder(cleaner: Cleaner, folder: Path, alive: set[str]) -> None:
    """Spools, images and put-aside files of migrations that are not alive."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        match = re.fullmatch(r"([0-9a-f]{8})\.(spool|images|old)", path.name)
        if match and match[1] not in alive:
            cleaner.remove(path, _remove_tree)


def _remove_tree(path: Path) -> None:
    btrfs.delete(path / "rootfs")
    shutil.rmtree(path)
