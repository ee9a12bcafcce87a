# SPDX-License-Identifier: GPL-2.0-or-later
"""What was in the place of the arrived container, once that is here for good: what is removed and what stays."""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path

from migrator.base import log, removal
from migrator.config import container_config
from migrator.copies import origins, written_since
from migrator.errors.data import SnapshotFailed
from migrator.host import btrfs, lxc
from migrator.record import clones, next_commands
from migrator.record.journal import Migration
from migrator.record.migration_paths import Layout


def drop(migration: Migration, layout: Layout, old: Path) -> None:
    """Drop the copy of an earlier stay, if it is the same container.

    Anything else may be an only copy: of a different container that had this name, or of one that ran here and gave
    way. Without its configuration nothing tells. The configuration may name a root file system in another place, which
    nothing else does. Another disk that someone has put behind the fence stays too, as does a root file system that
    clones depend on, and one that has been written to since, because those changes exist nowhere else. Safe to repeat.
    """
    rootfs, config = old / "rootfs", old / "config"
    told = config.is_file()
    elsewhere = container_config.rootfs_elsewhere(config, layout.rootfs) if told else ""
    removes = next_commands.command("cleanup", migration)
    stood, until = f"What was in the place of {migration.name}", f"until: {removes}"
    # First: a process that is just ending may have written last.
    lived_in = rootfs.exists() and lxc.lives_in(layout.name, rootfs)
    mounted = removal.mounts_in(rootfs)
    why = _why_not(migration, layout, old, elsewhere)
    it = f"{stood} {why}: it" if why else stood
    if lived_in:
        log.warning(f"{it} stays in {old}, as something lives in it, {until}")
        return
    if mounted:
        log.warning(f"{it} stays in {old}, as something is mounted in it: {', '.join(mounted[:5])}. Once that is "
                    f"unmounted, this removes it: {removes}")
        return
    if told and rootfs.exists() and (held := _stays(migration, layout, config, rootfs)):
        log.warning(f"{it} stays in {old}, with its configuration: {held}")
        return
    if why:
        configuration = f", its configuration in {old}," if told else ""
        if rootfs.exists():
            log.warning(f"{stood} {why}: it is kept in {_put_aside(layout, rootfs)}{configuration} {until}")
        elif elsewhere:
            log.warning(f"{stood} {why}: it is in {elsewhere}, and stays there; its configuration is kept in {old}"
                        f" {until}")
        if told:  # possibly also by an earlier finish that was killed
            return
    elif elsewhere:
        log.warning(f"The copy that {migration.name} had left here is removed, but its root file system, {elsewhere}, "
                    "is left alone. Remove it once you have made sure that nothing else uses it")
        if rootfs.exists():  # left by an older version, which made room this way
            log.warning(f"{stood} did not belong to that copy: it is kept in {_put_aside(layout, rootfs)} {until}")
    btrfs.delete(rootfs)
    for name in ("config", container_config.FENCE_HOOK):
        (old / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        old.rmdir()


def _why_not(migration: Migration, layout: Layout, old: Path, elsewhere: str) -> str:
    """Why its content keeps it from being removed automatically; "" if nothing does.

    Reported whatever else keeps it, because `cleanup NAME` removes it regardless.
    """
    rootfs, config = old / "rootfs", old / "config"
    told = config.is_file()
    another = told and origins.is_another_disk(migration.journal, config, rootfs)  # and then no write to it is reported
    was_kept = not elsewhere and not rootfs.exists() and bool(layout.set_aside())  # by a finish that was then killed
    if _nested(rootfs):
        return "has subvolumes inside, which a move does not take along"
    if told and not another and written_since.was_written_to(migration.journal, config, rootfs):
        return "was written to after it had been left here"
    if another or was_kept or not told or not origins.is_superseded(migration, config):
        return "may be the only copy of what it has"
    return ""


def _stays(migration: Migration, layout: Layout, config: Path, rootfs: Path) -> str:
    """Why it must not be touched at all, whatever its fence says, and what can be done about that; "" if it may go."""
    if clones.lie_on(layout.container):
        return (f"clones may depend on it, see {layout.container / clones.LIST}. Once they are destroyed, this removes "
                f"it: {next_commands.command('cleanup', migration)}")
    if origins.is_another_disk(migration.journal, config, rootfs):
        return (f"{rootfs} is not the root file system that {migration.name} had left here. If it is no longer needed: "
                f"btrfs subvolume delete {shlex.quote(str(rootfs))}")
    return ""


def _put_aside(layout: Layout, rootfs: Path) -> Path:
    layout.make_folder()  # an older version made only one of the two
    return rootfs.rename(layout.aside())


def _nested(rootfs: Path) -> bool:
    """Whether subvolumes are, or may be, inside what was in the container's place: no snapshot has included them."""
    try:
        return btrfs.is_subvolume(rootfs) and bool(btrfs.nested(rootfs))
    except SnapshotFailed as error:
        log.verbose(str(error))
        return True
