# SPDX-License-Identifier: GPL-2.0-or-later
"""What has run on the destination, and runs there by another name, or has come back to its own: how it is told.

A folder that was moved keeps its root file system. But on btrfs `lxc-copy -R` makes a snapshot, and removes what that
is of. Once, the snapshot names the original, whose uuid is on record; once more, and its disk leads nowhere. What stays
are its hardware addresses, which a copy that is not to replace it gets new ones for.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from migrator import btrfs, identity, lxc, roots, subvolume_uuids
from migrator.errors import MigratorError
from migrator.journal import Migration
from migrator.layout import Layout
from migrator.preflight import config_facts
from stages import left_running

_WHOLE = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}(?<!00:00:00:00:00:00)")


def addresses(folder: Path) -> set[str]:
    """The hardware addresses in the configuration of the container in this folder; none where that cannot be read.

    One with an x in it, for a digit that LXC makes up at each start, is nobody's.
    """
    with contextlib.suppress(MigratorError, OSError, ValueError):
        found = {net.hwaddr for net in config_facts.read(folder / "config").nets}
        return {hwaddr for hwaddr in found if _WHOLE.fullmatch(hwaddr)}
    return set()


def on_record(migration: Migration) -> list[str]:
    """What is to be recorded of it when it is let run."""
    return sorted(addresses(migration.lxcpath / migration.name))


def is_back(migration: Migration) -> bool:
    """Whether what is in its place is it by its addresses, where the disk does not tell that it is another one."""
    layout = Layout(migration.lxcpath, migration.name, migration.id)
    return (bool(addresses(layout.container) & _its(migration)) and btrfs.is_subvolume(layout.rootfs)
            and not subvolume_uuids.is_told(layout.rootfs))


def is_anothers(migration: Migration) -> bool:
    """Whether the addresses tell that what is in its place is another container."""
    here = addresses(migration.lxcpath / migration.name)
    return bool(here and _its(migration)) and not here & _its(migration)


def living(migration: Migration, layout: Layout) -> list[int]:
    """The processes of any containers that live in what has run here, wherever that is by now, and by what name.

    Or the first ones of those that run with its addresses.
    """
    disks = identity.recorded_rootfs_uuids(migration)
    return [pid for pid in lxc.container_processes("")
            if left_running.lives_in_own(layout, pid) or _lives_in(pid, disks)] or _with_its_addresses(migration)


def untold(migration: Migration, layout: Layout) -> list[int]:
    """The processes of what runs in its place, where neither disk nor addresses tell whose that is.

    In a plain folder it is another container: neither lxc-copy -R nor a move makes one on btrfs.
    """
    if (addresses(layout.container) and _its(migration)) or not btrfs.is_subvolume(layout.rootfs):
        return []
    found = left_running.live_in(layout.name, layout.rootfs)
    return [] if not found or subvolume_uuids.is_told(layout.rootfs) else found


def _lives_in(pid: int, disks: set[str]) -> bool:
    """Or in a snapshot of one of these."""
    root = roots.PROC / f"{pid}/root"
    with contextlib.suppress(MigratorError, OSError):  # it has ended
        return bool(disks) and roots.is_on_btrfs(pid) and (
            btrfs.uuid_around(root) in disks or btrfs.parent_of(btrfs.id_of(root), root) in disks)
    return False


def _with_its_addresses(migration: Migration) -> list[int]:
    found: list[int] = []
    if its := _its(migration):
        for folder in sorted(migration.lxcpath.iterdir()):
            with contextlib.suppress(MigratorError, OSError):  # it does not run
                if addresses(folder) & its:
                    found.append(lxc.Container(folder.name, migration.lxcpath).init_pid)
    return found


def _its(migration: Migration) -> set[str]:
    """What was on record when it had been let run; none by an older version."""
    return set(migration.detail.get("hwaddrs") or [])
