# SPDX-License-Identifier: GPL-2.0-or-later
"""What `migrator cleanup` removes, or would remove; and what stays all the same, which is always reported."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path

from migrator.base import log, removal
from migrator.config import container_config
from migrator.copies import origins, written_since
from migrator.host import btrfs, lxc
from migrator.record import clones
from migrator.record.journal import Journal, Migration
from migrator.record.migration_paths import Layout
from migrator.record.states import Role
from migrator.transfer import received_snapshot


class Cleaner:
    """Removes things, or in a dry run only reports what it would remove."""

    def __init__(self, *, dry_run: bool) -> None:
        self.dry_run = dry_run
        self.removed: list[str] = []
        self.kept: list[str] = []  # what someone may still want: it is removed only along with its container's name
        self.left: list[str] = []  # what is in a container's directory and not migrator's, or in use
        self.sizes: dict[str, int] = {}  # in a dry run: bytes that removing a subvolume would free

    def remove(self, path: Path, how: Callable[[Path], None]) -> None:
        self.take_back(str(path), lambda: how(path))

    def take_back(self, what: str, how: Callable[[], None]) -> None:
        self.removed.append(what)
        if not self.dry_run:
            how()

    def leaves(self, name: str, rootfs: Path) -> bool:
        """Whether a root file system and what belongs to it stay, because something lives in it, of whatever container.

        Or because something is mounted in it, as far as this process sees, or it contains subvolumes, which no
        migration sends. Raises SnapshotFailed if that cannot be determined.
        """
        if lxc.lives_in(name, rootfs):
            log.warning(f"{rootfs} stays, as something lives in it")
            return True
        if mounted := removal.mounts_in(rootfs):
            log.warning(f"{rootfs} stays, as something is mounted in it: {', '.join(mounted[:5])}")
            self.left += mounted
            return True
        inner = btrfs.nested(rootfs) if btrfs.is_subvolume(rootfs) else []
        if inner:
            log.warning(f"{rootfs} stays, as it has subvolumes inside, which have not moved with it. When one is no "
                        f"longer needed: btrfs subvolume delete {shlex.quote(f'{rootfs}/{inner[0]}')}")
            self.left += [f"{rootfs}/{name}" for name in inner]
        return bool(inner)

    def leaves_copy(self, journal: Journal, folder: Path, config: Path, rootfs: Path, remove: list[str]) -> bool:
        """Whether a copy's root file system, with this configuration, stays although it is a copy.

        Either clones depend on the container, whose directory is `folder`; or it is another disk, and whoever is to
        `remove` it is told.
        """
        if os.path.lexists(rootfs) and clones.lie_on(folder):
            log.warning(f"{rootfs} stays, as clones depend on it, see {folder / clones.LIST}. Destroy them first, or "
                        "remove that file if none of them exists any more")
            return True
        if origins.is_another_disk(journal, config, rootfs):
            log.warning(f"{rootfs} stays, with its configuration: it is not the root file system that {folder.name} had"
                        f" left here. If it is no longer needed: {shlex.join(remove)}")
            self.left.append(str(rootfs))
            return True
        return False

    def remove_folder(self, path: Path) -> None:
        """Remove a container's directory; what others have put or mounted there stays, and the directory with it."""
        strange = container_config.strange_in(path)
        if not self.dry_run:
            strange = container_config.remove(path)
        self.left += map(str, strange)
        if not strange:
            self.removed.append(str(path))

    def give_names_back(self, journal: Journal, layout: Layout) -> None:
        """Undo what streams did to the names of snapshots when receiving them was interrupted.

        Until then no name can be trusted. The latest stream's first, because it found things as the earlier ones had
        left them; those of which there is no record are older than all others.
        """
        begun = {each.id: number for number, each in enumerate(journal.all(layout.name))}
        notes = layout.work.glob(f"????????.spool/{received_snapshot.NOTE}")
        for spool in sorted((note.parent for note in notes), key=lambda spool: begun.get(spool.stem, -1), reverse=True):
            if self.dry_run:
                log.warning(f"A receive into {layout.folder} was interrupted: what it has renamed there gets its name "
                            "back")
            else:
                received_snapshot.clear(layout.folder, spool, but=partial(_is_not_of, journal, spool.stem))

    def measure(self, journal: Journal, lxcpath: Path) -> None:
        """In a dry run, fill in `sizes`. That reads all of a copy, which does not count as a write to it."""
        if not (self.dry_run and self.removed):
            return
        btrfs.wait_deleted(lxcpath)  # until then it shares what is left with these
        for path in filter(btrfs.is_subvolume, map(Path, self.removed)):
            with written_since.only_read(journal, path.parent / "config", path):
                self.sizes[str(path)] = btrfs.exclusive_bytes(path)


def records(journal: Journal, id_: str) -> list[Migration]:
    return [found for role in Role if (found := journal.by_id(id_, role))]


def _is_not_of(journal: Journal, id_: str, name: str) -> bool:
    """Whether snapshots of that name must not be removed as brought by a stream of that migration.

    Either it is another migration's, or nothing tells how long ago that migration was in progress and what has come
    there since.
    """
    other = name.partition(".")[0]
    known = re.fullmatch(r"[0-9a-f]{8}\.[0-9]+", name) and other != id_ and records(journal, other)
    return bool(known) or not records(journal, id_)
