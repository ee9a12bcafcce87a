# SPDX-License-Identifier: GPL-2.0-or-later
"""What ran on the destination and gave way, because the source goes on with its own copy: whether that is still so.

The source may have been killed before it could record that, and ask again much later. Meanwhile, what was renamed may
have its name back, as `gone-there` advises, a disk may be back, and a fence is just text. So the answer is about what
is there now. The migration has ended here: its spool is gone, and its snapshots may be too.
"""

from __future__ import annotations

import os
from pathlib import Path

from migrator.config import container_config, fences
from migrator.copies import after_crash, origins
from migrator.errors.containers import BackThere, MovedOn, OutOfOrder
from migrator.errors.memory import CopyNotEnded
from migrator.host import btrfs, lxc, subvolume_uuids
from migrator.record import lxc_disk, next_commands
from migrator.record.journal import Migration
from migrator.record.migration_paths import Layout
from migrator.record.next_commands import this_host
from stages.steps import left_running, renamed, settling

STARTABLE = "nothing prevents it from being started"
MOVED_ON = "it has moved on from there"


def refuse_back(migration: Migration) -> None:
    """Before the source is told again that it may go on: raise BackThere, or DiskAway if that cannot be seen.

    Another container in its place, or an empty place, is no obstacle; nor is its own behind an intact fence.
    """
    layout = Layout.of(migration)
    lxc_disk.require_ended(layout, migration.begun.disk)
    living = renamed.living(migration, layout)
    back = "" if living else _may_run_in_place(migration, layout)
    lxc_disk.require_ended(layout, migration.begun.disk)  # after the last look
    if living or back:
        there, how = renamed.told(migration, living) if living else (migration.name, back)
        raise (MovedOn if back == MOVED_ON else BackThere)(
            name=migration.name, destination=this_host(), there=there, how=how, lxcpath=migration.lxcpath,
            next=next_commands.command("rollback@source", migration),
            keep=next_commands.command("finish@source", migration, "--force", migration.id))


def never_finished(migration: Migration, stage: str) -> OutOfOrder:
    """For a source that asks whether it runs here, in order to end its own copy; raises what `refuse_back` raises."""
    refuse_back(migration)
    return OutOfOrder(stage=stage, next=next_commands.command("rollback@source", migration), missing=(
        f"{migration.name} had run here, and has yielded to the source's copy: what is left of it here, if anything, "
        "is fenced"))


def refuse_lost(migration: Migration) -> None:
    """For a container that is to give way because it is no longer in its place.

    Raises CopyNotEnded if a start of it may be alive here all the same: by another name in a copy of its disk, or with
    its root outside of what this migration made. The latter is recognised by the cgroup of its name. So nothing is said
    about that if another container has its place by now, because that one has such a cgroup too.
    """
    layout = Layout.of(migration)
    found, place = renamed.on_its_disk(migration, layout), "its root file system, or a copy of that"
    if not found and (found := renamed.with_its_addresses(migration, layout)):
        place = f"a container that has its MAC address ({', '.join(migration.arrived.hwaddrs)})"
    elif not found and not lxc_disk.is_removed(layout):
        found, place = renamed.untold(migration, layout), f"{layout.rootfs}, and nothing shows whose it is"
    elif not found:
        found = left_running.called_so(layout, lxc.END_LIMIT)
        place = f"a cgroup that LXC has named lxc.payload.{migration.name}"
    if found:
        raise CopyNotEnded(name=migration.name, place=place, pids=",".join(map(str, found)),
                           next=after_crash.by_force(migration))


def _may_run_in_place(migration: Migration, layout: Layout) -> str:
    """How LXC has it in its place, with its disk: it runs, or nothing of this migration keeps it from that; or "".

    Behind the fence of a later move it cannot be started here, but lives on elsewhere: MOVED_ON. If its root file
    system was made from one that has been removed since, nothing tells whose it is, as after renaming it with `lxc-copy
    -R` and back. With other MAC addresses it is another container's. Otherwise it counts as its own unless there is a
    fence, because whoever is refused for it can rename it.
    """
    config = layout.container / "config"
    if not os.path.lexists(config):
        return ""
    container = lxc.Container(layout.name, layout.lxcpath) if config.is_file() else None
    disks = origins.recorded_rootfs_uuids(migration)
    rootfs = container.rootfs if container and container.rootfs != Path() else layout.rootfs  # none need be set
    found = [path for path in (layout.rootfs, rootfs) if btrfs.is_subvolume(path)]
    its = origins.has_its_disk(migration) or any(btrfs.info(path).uuid in disks for path in found)
    if not its and (renamed.is_anothers(migration) or all(subvolume_uuids.is_told(path) for path in found)):
        return ""
    if container is None:  # a symlink that is dangling at the moment
        return STARTABLE
    # Even if a process holds up LXC's answer.
    if lxc.told_state(container) != "STOPPED" or settling.lives(layout, rootfs):
        return "it runs"
    text = container_config.text_of(config)
    if not fences.refuses(layout.container, text):
        return STARTABLE
    return MOVED_ON if its and container_config.fence_of(text) != migration.id else ""
