# SPDX-License-Identifier: GPL-2.0-or-later
"""What `migrator cleanup` removes, or would remove, and what stays all the same: whatever it is, it is told."""

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
    """Removes things, or only tells what it would remove."""

    def __init__(self, *, dry_run: bool) -> None:
        self.dry_run = dry_run
        self.removed: list[str] = []
        self.kept: list[str] = []  # what somebody may still want: it goes with its container's name alone
        self.left: list[str] = []  # what lies in a container's folder and is not migrator's, or is in use
        self.sizes: dict[str, int] = {}  # what removing a subvolume would free, bytes; in a dry run

    def remove(self, path: Path, how: Callable[[Path], None]) -> None:
        self.take_back(str(path), lambda: how(path))

    def take_back(self, what: str, how: Callable[[], None]) -> None:
        self.removed.append(what)
        if not self.dry_run:
            how()

    def leaves(self, name: str, rootfs: Path) -> bool:
        """Whether a root file system stays, and what belongs to it: for what lives in it, of whatever container.

        Or for what is mounted in it, as far as this process sees, and the subvolumes: no migration sends these. Raises
        SnapshotFailed where it cannot be told.
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
        """Whether the root file system of a copy, with this configuration, stays with it, though it is one.

        For clones of the container, whose folder is `folder`; or as it is another disk, for whom `remove` is told.
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
        """A container's: what others have put there, or mounted, stays, and so the folder."""
        strange = container_config.strange_in(path)
        if not self.dry_run:
            strange = container_config.remove(path)
        self.left += map(str, strange)
        if not strange:
            self.removed.append(str(path))

    def give_names_back(self, journal: Journal, layout: Layout) -> None:
        """Undo what streams have done among the snapshots when their receives were broken off.

        Before that no name counts. The last one's first: it has found things as those before had left them. Whom no
        record is about came before all.
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
        """In a dry run: fill `sizes` in. All of a copy is read for that, which is no write to it."""
        if not (self.dry_run and self.removed):
            return
        btrfs.wait_deleted(lxcpath)  # until then it shares what is left with these
        for path in filter(btrfs.is_subvolume, map(Path, self.removed)):
            with written_since.only_read(journal, path.parent / "config", path):
                self.sizes[str(path)] = btrfs.exclusive_bytes(path)


def records(journal: Journal, id_: str) -> list[Migration]:
    return [found for role in Role if (found := journal.by_id(id_, role))]


def _is_not_of(journal: Journal, id_: str, name: str) -> bool:
    """Whether what is called so among the snapshots may not go as brought by a stream of that migration.

    It is another one's; or nothing tells how long ago that migration was under way, and what has come there since.
    """
    other = name.partition(".")[0]
    known = re.fullmatch(r"[0-9a-f]{8}\.[0-9]+", name) and other != id_ and records(journal, other)
    return bool(known) or not records(journal, id_)
