# SPDX-License-Identifier: GPL-2.0-or-later
"""What the arriving container replaces is put aside, and given back if the attempt is given up."""

from __future__ import annotations

import contextlib
from pathlib import Path

from migrator.base import log, removal
from migrator.config import container_config, include_copies
from migrator.copies import origins
from migrator.copies.origins import Whose
from migrator.criu import ran_mark
from migrator.errors.containers import ContainerExists
from migrator.host import btrfs, lxc
from migrator.record import clones, lxc_disk
from migrator.record.journal import Migration
from migrator.record.migration_paths import Layout, put
from migrator.record.next_commands import this_host
from migrator.transfer import received_snapshot


def keep_old(layout: Layout) -> None:
    """Put the configuration of an earlier stay aside, once; `give_back_old` undoes it."""
    if origins.whose(layout) is not Whose.COPY or (layout.old / "config").exists():
        return
    layout.old.mkdir(mode=0o700, exist_ok=True)
    for name in (container_config.FENCE_HOOK, "config"):  # config last: it shows that both are there
        if (layout.container / name).is_file():
            _copy(layout.container / name, layout.old / name)


def _copy(source: Path, target: Path) -> None:
    mode = 0o755 if source.name == container_config.FENCE_HOOK else None
    container_config.write_file(target, container_config.text_of(source), mode=mode)


def give_back_old(layout: Layout) -> None:
    """Undo what arriving has changed in the container's place: the earlier stay's files return, or the directory goes.

    Touches nothing that does not carry this migration's own fence; safe to repeat after a crash at any point.
    """
    layout.drop_beside()
    found, kept = origins.whose(layout), layout.old / "config"
    if found is not Whose.FOREIGN:
        put_aside(layout)  # it was put aside, but a power cut can have undone that and not the record that came after
    if found.may_go and not kept.is_file():
        _remove(layout)
    elif found.may_go or (found is Whose.COPY and kept.is_file() and _is_back(layout)):
        give_back_rootfs(layout)
        if (layout.old / "rootfs").exists():
            log.warning(f"{layout.rootfs} was not made by migration {layout.id}: it stays, and what an earlier stay of"
                        f" {layout.name} has left there is in {layout.old}")
            return
        # With config, the last one, it is the earlier stay's again.
        for name in (container_config.FENCE_HOOK, "config"):
            if (layout.old / name).is_file():
                _copy(layout.old / name, layout.container / name)
        include_copies.drop(layout.container, layout.id)
    elif layout.old.exists() and kept.is_file():
        log.warning(f"{layout.container} is another container now; what an earlier stay of {layout.name} has left"
                    f" there is in {layout.old}")
        return
    removal.tree(layout.old)


def _is_back(layout: Layout) -> bool:
    """Whether the earlier stay's configuration is in its place: already modified, not yet, or restored."""
    return (layout.old / "config").read_bytes() == (layout.container / "config").read_bytes()


def _remove(layout: Layout) -> None:
    """Remove the directory that this migration made, by first moving it out of its place as a whole.

    If someone has put or mounted something in it, that stays, in its place.
    """
    if layout.rootfs.exists() and not layout.is_own_rootfs():
        log.warning(f"{layout.rootfs} was not made by migration {layout.id}: {layout.container} stays")
        return
    if container_config.strange_in(layout.container, layout.id) or removal.mounts_in(layout.rootfs):
        btrfs.delete(layout.rootfs)
        container_config.remove(layout.container, layout.id)
        return
    layout.make_folder()  # a migration begun by an older version does not have it yet
    put(layout.container, layout.beside)
    layout.drop_beside()


def put_aside(layout: Layout) -> None:
    """Put its root file system aside if it may have run and does not any more: what is in its place must be ours."""
    if ran_mark.was(ran_mark.mark(layout.spool)) and layout.is_own_rootfs():
        kept = layout.aside()
        layout.rootfs.rename(kept)
        log.warning(f"{layout.name} may have run here for a moment; what it has written is kept in {kept}")


def give_back_rootfs(layout: Layout) -> None:
    """Remove what this migration has put in the root file system's place; that of an earlier stay returns."""
    if layout.is_own_rootfs():
        btrfs.delete(layout.rootfs)
    old = layout.old / "rootfs"
    if old.exists() and not layout.rootfs.exists():
        old.rename(layout.rootfs)


def put_rootfs_aside(layout: Layout) -> None:
    """Make room for what has arrived: the root file system of an earlier stay, as found by `keep_old`, is put aside.

    Raises ContainerExists if anything else is there, or the container's place is no longer ours.
    """
    origins.require_ours(layout)
    if btrfs.is_subvolume(layout.rootfs):
        require_room(layout)
        layout.rootfs.rename(layout.old / "rootfs")


def require_room(layout: Layout) -> None:
    """Raise ContainerExists if the root file system's place holds anything but that of the earlier stay, or is in use.

    HasClones if clones depend on it.
    """
    if btrfs.is_subvolume(layout.rootfs):
        config = layout.old / "config"
        if not config.is_file() or (layout.old / "rootfs").exists() or (
                container_config.rootfs_elsewhere(config, layout.rootfs)) or lxc.lives_in(layout.name, layout.rootfs):
            raise ContainerExists(host_name=this_host(), name=layout.name, lxcpath=layout.lxcpath)
        clones.refuse(layout)


def drop_attempt(migration: Migration, layout: Layout) -> None:
    """Remove everything that this migration has brought to this host, except what it keeps.

    Raises DiskAway if some of it may be on its disk, and that is not there.
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
    if on_disk:  # only the spool is left, and this may be repeated
        migration.note("disk", on_disk=False)
    layout.drop_spool()
    layout.tidy()
