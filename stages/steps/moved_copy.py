# SPDX-License-Identifier: GPL-2.0-or-later
"""The copy that a container which moved away left here: which one it is, and its removal."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from migrator.base import log, names
from migrator.config import container_config, fences
from migrator.copies import bases, origins
from migrator.host import btrfs, lxc, network
from migrator.record.journal import Journal, Migration
from migrator.record.migration_paths import Layout
from migrator.record.states import Role, State
from stages.steps.cleaner import Cleaner, records


def clean_moved(cleaner: Cleaner, migration: Migration) -> None:
    """Remove what a container that moved away left here: its snapshots, and the copy that has this move's fence.

    Nothing of a different container that had its name, nor what was put aside, which may be the only copy and goes only
    with `cleanup NAME`.
    """
    layout = Layout.of(migration)
    cleaner.removed += map(str, bases.prune(migration, keep=0))
    if origins.whose(layout).may_go:
        remove_copy(cleaner, migration.journal, layout)
    if migration.id in network.silenced():
        remove_table(cleaner, migration.journal, migration.id)


def remove_copy(cleaner: Cleaner, journal: Journal, layout: Layout) -> None:
    if not is_copy(cleaner, journal, layout):
        return
    container = lxc.Container(layout.name, layout.lxcpath)
    rootfs = container.rootfs
    destroy = ["lxc-destroy", "-P", str(layout.lxcpath), "-n", layout.name]
    if container.state == "STOPPED" and not cleaner.leaves(layout.name, rootfs) and not cleaner.leaves_copy(
            journal, layout.container, layout.container / "config", rootfs, destroy):
        if btrfs.is_subvolume(rootfs):
            cleaner.remove(rootfs, btrfs.delete)
        cleaner.remove_folder(layout.container)


def is_copy(cleaner: Cleaner, journal: Journal, layout: Layout) -> bool:
    """Whether what is there is a copy that the container left, or that gave way, by the record of its fence.

    Or is back from an attempt that was given up. If nobody knows that any more, the fence itself must say so. A fence
    left over on a container that moved here is removed.
    """
    config, text = layout.container / "config", config_text(layout.container)
    fence = container_config.fence_of(text)
    if not fence:
        return False
    if not (recorded := records(journal, fence)):
        copy = container_config.is_superseded(layout.container)
    else:
        named = {each.role: each for each in recorded if each.name == layout.name and each.state is State.FINISHED}
        came = named.get(Role.DESTINATION)
        if came and not came.arrived.given_way and Role.SOURCE not in named:
            if not cleaner.dry_run:
                container_config.unfence(layout.container, fence)
            return False
        copy = bool(named) or any(was_put_back(each, layout) for each in recorded)
    if copy and not fences.refuses(layout.container, text):
        log.warning(f"{layout.container} stays: what is left of its fence does not prevent a start, so it may be in "
                    f"use. If it is, also remove the rest of the fence from {config}; if it is no longer needed: "
                    f"{shlex.join(['lxc-destroy', '-P', str(layout.lxcpath), '-n', layout.name])}")
        return False
    if not copy:
        log.warning(f"{layout.container} stays: nothing shows that its container lives elsewhere. See: migrator"
                    f" status {layout.name}")
    return copy


def config_text(container: Path) -> str:
    config = container / "config"
    return config.read_text(errors="replace") if config.is_file() else ""


def was_put_back(migration: Migration, layout: Layout) -> bool:
    """Whether all that is there is of this attempt, which was given up here: a power cut can undo a removal."""
    given_up = migration.role is Role.DESTINATION and migration.state is State.ABANDONED
    if not given_up or migration.name != layout.name or not names.same_path(migration.lxcpath, layout.lxcpath):
        return False
    return not container_config.rootfs_elsewhere(layout.container / "config", layout.rootfs) and (
        origins.has_its_own(migration) or not os.path.lexists(layout.rootfs))


def remove_table(cleaner: Cleaner, journal: Journal, id_: str) -> None:
    """Remove the table that silenced a frozen container; for an unknown migration only if that container is gone."""
    if not records(journal, id_) and (interfaces := network.still_silenced(id_)):
        log.warning(f"{', '.join(interfaces)} neither receives nor sends anything, for migration {id_}, which this "
                    f"host does not know. To end that: {shlex.join(network.hear_command(id_))}")
        return
    cleaner.take_back(f"nft table netdev {network.table(id_)}", lambda: network.hear(id_))
