# SPDX-License-Identifier: GPL-2.0-or-later
"""What has run on the destination, and runs there by another name, or has come back to its own: how it is told.

A folder that was moved keeps its root file system. But on btrfs `lxc-copy -R` makes a snapshot, and removes what that
is of. Once, the snapshot names the original, whose uuid is on record; once more, and its disk leads nowhere. What stays
are its hardware addresses, which a copy that is not to replace it gets new ones for.
"""

from __future__ import annotations

import contextlib
import functools
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from migrator.base import bounded_ask
from migrator.config import lxc_settings
from migrator.copies import forked, origins, second_start
from migrator.errors import MigratorError
from migrator.errors.containers import ContainerNotFound, ContainerNotRunning
from migrator.errors.this_host import CommandTimeout
from migrator.host import btrfs, lxc, monitor_socket, roots, subvolume_uuids
from migrator.record.journal import Migration
from migrator.record.migration_paths import Layout
from stages.steps import left_running

Told = TypeVar("Told")

_WHOLE = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}(?<!00:00:00:00:00:00)")
# Of other containers: nothing may stand still for their sake for good.
_configurations = bounded_ask.Asking(always=True)


def addresses(folder: Path) -> set[str]:
    """The hardware addresses in the configuration of the container in this folder; none where that cannot be read, or
    is not answered, as where it includes a file from a server that is gone.

    One with an x in it, for a digit that LXC makes up at each start, is nobody's.
    """
    return set().union(*_answer(folder, _addresses))


def _addresses(folder: Path) -> set[str]:
    with contextlib.suppress(MigratorError, OSError, ValueError):
        found = {net.hwaddr for net in lxc_settings.read(folder / "config").nets}
        return {hwaddr for hwaddr in found if _WHOLE.fullmatch(hwaddr)}
    return set()


def _answer(folder: Path, question: Callable[[Path], Told]) -> list[Told]:
    """The answer of a container's folder, if there is one in time."""
    if str(folder) in _configurations.silent:
        return []
    return _configurations.answers([(str(folder), functools.partial(question, folder))])


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
    return on_its_disk(migration, layout) or with_its_addresses(migration, layout)


def on_its_disk(migration: Migration, layout: Layout) -> list[int]:
    """The former alone."""
    disks = origins.recorded_rootfs_uuids(migration)
    return forked.those(lxc.container_processes(""),
                        lambda root: left_running.is_in_own(layout, root) or _lies_in(root, disks))


def called(lxcpath: Path, pids: list[int]) -> str:
    """By what name these are a container's in this LXC path, "" where nothing tells: what LXC has called the cgroup of
    one has that name, as another LXC path's may, and its root is that container's.
    """
    folders = sorted(lxcpath.iterdir())
    for pid in pids:
        with contextlib.suppress(OSError, ValueError):  # it has ended
            cgroup = lxc.cgroup_of(pid)
            for folder in folders:
                if lxc.is_payload(folder.name, cgroup) and _has_one([pid], folder):
                    return folder.name
    return ""


def told(migration: Migration, living: list[int]) -> tuple[str, str]:
    """By what name what lives is stopped and renamed, and how it runs; NAME where its processes alone are told."""
    there = called(migration.lxcpath, living)
    if not there:
        pids = ",".join(map(str, living))
        return "NAME", f"it runs, as process {pids}; /proc/{living[0]}/cgroup there shows under which name"
    return shlex.quote(there), "it runs" + (f" under the name {there}" if there != migration.name else "")


def untold(migration: Migration, layout: Layout) -> list[int]:
    """The processes of what runs in its place, where neither disk nor addresses tell whose that is.

    In a plain folder it is another container: neither lxc-copy -R nor a move makes one on btrfs.
    """
    if (addresses(layout.container) and _its(migration)) or not btrfs.is_subvolume(layout.rootfs):
        return []
    found = left_running.live_in(layout.name, layout.rootfs)
    return [] if not found or subvolume_uuids.is_told(layout.rootfs) else found


def _lies_in(root: Path, disks: set[str]) -> bool:
    """Or in a snapshot of one of these."""
    with contextlib.suppress(MigratorError, OSError):
        return bool(disks) and (
            btrfs.uuid_around(root) in disks or btrfs.parent_of(btrfs.id_of(root), root) in disks)
    return False


def with_its_addresses(migration: Migration, layout: Layout) -> list[int]:
    """The latter, unless their disk tells that they are other containers, as those that were made anew.

    No configuration is read of what does not run: the source may stand still until this is told.
    """
    if its := _its(migration):
        found = [folder for folder in _at_work(migration.lxcpath) if addresses(folder) & its]
        return [pid for folder in found if not _has_another_disk(migration, layout, folder) for pid in _first(folder)]
    return []


def _has_another_disk(migration: Migration, layout: Layout, folder: Path) -> bool:
    """Whether it is told of what the root file system of the container in this folder was made, and that was never of
    what has run here.
    """
    with contextlib.suppress(MigratorError, OSError):
        rootfs = _rootfs(lxc.Container(folder.name, folder.parent))
        its = origins.recorded_rootfs_uuids(migration) | {btrfs.info(each).uuid for each in layout.own_snapshots()}
        return (btrfs.is_subvolume(rootfs) and subvolume_uuids.is_told(rootfs)
                and its.isdisjoint({btrfs.info(rootfs).uuid, *subvolume_uuids.ancestors(rootfs)}))
    return False


def _at_work(lxcpath: Path) -> list[Path]:
    """The folders of what may run in an LXC path: by what LXC has called the cgroup of a process. And where a start is
    in no such cgroup (lxc.cgroup.dir in lxc.container.conf(5)), by its root, or a monitor that listens.
    """
    named, others = {cgroup for _, cgroup in _cgroups() if _is_named(cgroup)}, _elsewhere()
    return [folder for folder in sorted(lxcpath.iterdir())
            if any(lxc.is_payload(folder.name, cgroup) for cgroup in named) or (others and (
                any(_answer(folder, functools.partial(_has_one, others))) or _listens(folder)))]


def _cgroups() -> Iterator[tuple[int, Path]]:
    """The processes of all containers, each with its cgroup."""
    for pid in lxc.container_processes(""):
        with contextlib.suppress(OSError, ValueError):  # it has ended
            yield pid, lxc.cgroup_of(pid)


def _is_named(cgroup: Path) -> bool:
    return cgroup.name.startswith("lxc.payload.")


def _elsewhere() -> list[int]:
    """The first processes of starts in other cgroups than those. No user of this host can make one, and have all these
    questions asked.
    """
    return [pid for pid, cgroup in _cgroups() if not _is_named(cgroup) and second_start.is_start(pid)]


def _listens(folder: Path) -> bool:
    try:
        return monitor_socket.holder(folder.name, folder.parent) is not None
    except CommandTimeout:  # somebody does
        return True


def _has_one(pids: list[int], folder: Path) -> bool:
    for pid in pids:
        with contextlib.suppress(OSError):
            if roots.is_in(pid, folder / "rootfs"):
                return True
    return False


def _first(folder: Path) -> list[int]:
    """The first process of the container in this folder; none where it does not run.

    LXC knows nothing of one that was started under another spelling of the LXC path, or whose monitor has ended. Nor
    is it known who listens and takes no connection, as any user of the host may: then the processes alone tell, with
    their root elsewhere by whom their monitor answers for.
    """
    with contextlib.suppress(ContainerNotFound, ContainerNotRunning):
        container = lxc.Container(folder.name, folder.parent)
        start = second_start.on_disk(folder.name, folder.parent, _rootfs(container))
        try:
            return [container.init_pid if start is None else start]
        except CommandTimeout:
            return [pid for pid in _elsewhere() if second_start.is_answered_for(pid, folder.name, folder.parent)]
    return []


def _rootfs(container: lxc.Container) -> Path:
    return container.rootfs if container.rootfs != Path() else container.folder / "rootfs"


def _its(migration: Migration) -> set[str]:
    """What was on record when it had been let run; none by an older version."""
    return set(migration.arrived.hwaddrs)
