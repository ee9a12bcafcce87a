# SPDX-License-Identifier: GPL-2.0-or-later
"""Recognises a container that ran on the destination and runs there under another name, or has its own name back.

A directory that was moved keeps its root file system. But on btrfs, `lxc-copy -R` makes a snapshot and removes the
original. After one such rename, the snapshot names the original, whose uuid is on record; after a second, its disk
leads nowhere. What stays are its MAC addresses, whereas a copy that is not meant to replace it gets new ones.
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
# Of other containers: nothing may be held up for long because of them.
_configurations = bounded_ask.Asking(always=True)


def addresses(folder: Path) -> set[str]:
    """The MAC addresses in the configuration of the container in this directory.

    None if it cannot be read or does not answer, because it includes a file from a server that is gone, say. An address
    that has an x for a digit, which LXC makes up at each start, identifies nobody.
    """
    return set().union(*_answer(folder, _addresses))


def _addresses(folder: Path) -> set[str]:
    with contextlib.suppress(MigratorError, OSError, ValueError):
        found = {net.hwaddr for net in lxc_settings.read(folder / "config").nets}
        return {hwaddr for hwaddr in found if _WHOLE.fullmatch(hwaddr)}
    return set()


def _answer(folder: Path, question: Callable[[Path], Told]) -> list[Told]:
    """The answer for a container's directory, if it comes in time."""
    if str(folder) in _configurations.silent:
        return []
    return _configurations.answers([(str(folder), functools.partial(question, folder))])


def on_record(migration: Migration) -> list[str]:
    """What to record about it when it is let run."""
    return sorted(addresses(migration.lxcpath / migration.name))


def is_back(migration: Migration) -> bool:
    """Whether what is in its place is it by its MAC addresses, when the disk does not show that it is another one."""
    layout = Layout.of(migration)
    return (bool(addresses(layout.container) & _its(migration)) and btrfs.is_subvolume(layout.rootfs)
            and not subvolume_uuids.is_told(layout.rootfs))


def is_anothers(migration: Migration) -> bool:
    """Whether the MAC addresses show that what is in its place is another container."""
    here = addresses(migration.lxcpath / migration.name)
    return bool(here and _its(migration)) and not here & _its(migration)


def living(migration: Migration, layout: Layout) -> list[int]:
    """The processes of any containers that live in what has run here, wherever that is by now, and by whatever name.

    Or else PID 1 of each container that runs with its MAC addresses.
    """
    return on_its_disk(migration, layout) or with_its_addresses(migration, layout)


def on_its_disk(migration: Migration, layout: Layout) -> list[int]:
    """The processes that live in what has run here, wherever that is by now."""
    disks = origins.recorded_rootfs_uuids(migration)
    return forked.those(lxc.container_processes(""),
                        lambda root: left_running.is_in_own(layout, root) or _lies_in(root, disks))


def called(lxcpath: Path, pids: list[int]) -> str:
    """The name that the container of these processes has in this LXC path, "" if nothing tells.

    The cgroup made by LXC has that name, which a container in another LXC path may have too, so the root must also be
    that container's.
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
    """The name by which what lives can be stopped and renamed, and how it runs; NAME if only its processes are known.
    """
    there = called(migration.lxcpath, living)
    if not there:
        pids = ",".join(map(str, living))
        return "NAME", f"it runs, as process {pids}; /proc/{living[0]}/cgroup there shows under which name"
    return shlex.quote(there), "it runs" + (f" under the name {there}" if there != migration.name else "")


def untold(migration: Migration, layout: Layout) -> list[int]:
    """The processes of what runs in its place, if neither disk nor MAC addresses tell whose that is.

    In a plain directory it is another container: on btrfs neither lxc-copy -R nor a move makes one.
    """
    if (addresses(layout.container) and _its(migration)) or not btrfs.is_subvolume(layout.rootfs):
        return []
    found = left_running.live_in(layout.name, layout.rootfs)
    return [] if not found or subvolume_uuids.is_told(layout.rootfs) else found


def _lies_in(root: Path, disks: set[str]) -> bool:
    """Whether a root is in one of these, or in a snapshot of one."""
    with contextlib.suppress(MigratorError, OSError):
        return bool(disks) and (
            btrfs.uuid_around(root) in disks or btrfs.parent_of(btrfs.id_of(root), root) in disks)
    return False


def with_its_addresses(migration: Migration, layout: Layout) -> list[int]:
    """PID 1 of each container that has its MAC addresses, unless the disk shows it to be another one (made anew, say).

    Only configurations of running containers are read: the source may be frozen until this is answered.
    """
    if its := _its(migration):
        found = [folder for folder in _at_work(migration.lxcpath) if addresses(folder) & its]
        return [pid for folder in found if not _has_another_disk(migration, layout, folder) for pid in _first(folder)]
    return []


def _has_another_disk(migration: Migration, layout: Layout, folder: Path) -> bool:
    """Whether the origin of the root file system in this directory is known and never was what has run here."""
    with contextlib.suppress(MigratorError, OSError):
        rootfs = _rootfs(lxc.Container(folder.name, folder.parent))
        its = origins.recorded_rootfs_uuids(migration) | {btrfs.info(each).uuid for each in layout.own_snapshots()}
        return (btrfs.is_subvolume(rootfs) and subvolume_uuids.is_told(rootfs)
                and its.isdisjoint({btrfs.info(rootfs).uuid, *subvolume_uuids.ancestors(rootfs)}))
    return False


def _at_work(lxcpath: Path) -> list[Path]:
    """The directories of what may be running in an LXC path, by the names that LXC gave to the cgroups of processes.

    A start may be in no such cgroup (lxc.cgroup.dir in lxc.container.conf(5)): then by its root, or a listening
    monitor.
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
    """PID 1 of each start in a different cgroup.

    No user of this host can make one just to have all these questions asked.
    """
    return [pid for pid, cgroup in _cgroups() if not _is_named(cgroup) and second_start.is_start(pid)]


def _listens(folder: Path) -> bool:
    try:
        return monitor_socket.holder(folder.name, folder.parent) is not None
    except CommandTimeout:  # a user is holding it up
        return True


def _has_one(pids: list[int], folder: Path) -> bool:
    for pid in pids:
        with contextlib.suppress(OSError):
            if roots.is_in(pid, folder / "rootfs"):
                return True
    return False


def _first(folder: Path) -> list[int]:
    """PID 1 of the container in this directory; empty if it does not run.

    LXC does not know one that was started under another spelling of the LXC path, or whose monitor has ended. Nor can
    it be known who is listening without accepting connections, as any user of the host may: then only the processes
    tell, those with their root elsewhere by whom their monitor answers for.
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
    """What was recorded when it was let run; empty for an older version."""
    return set(migration.arrived.hwaddrs)
