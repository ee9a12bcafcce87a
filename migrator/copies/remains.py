# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether what a migration froze or stopped on its source is still alive, judged by its cgroup.

LXC is not asked. It reports STOPPED as soon as the container's monitor has ended, killed for lack of memory for
example, while all tasks live on (the monitor answers for the container on a socket; see lxc_getstate in liblxc's
state.c). No configuration is needed either, as it may have been renamed or removed meanwhile.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from msgspec import UNSET, UnsetType

from migrator.base import boot_clock
from migrator.base.process_id import Process
from migrator.copies import forked, second_start
from migrator.errors import MigratorError
from migrator.errors.containers import ContainerNotFound
from migrator.errors.memory import StartFailed
from migrator.host import btrfs, cgroups, lxc
from migrator.record.detail import BeforeStill
from migrator.record.journal import Migration
from migrator.record.migration_paths import Layout


def record(container: lxc.Container) -> BeforeStill:
    """What the journal must know of a running container before it is frozen or stopped."""
    init, boot, cgroup = init_of(container), boot_clock.BOOT_ID.read_text().strip(), ""
    rootfs_uuid: str | UnsetType = UNSET
    with contextlib.suppress(MigratorError, OSError):
        cgroup = str(container.cgroup)
    with contextlib.suppress(MigratorError, OSError):
        rootfs_uuid = btrfs.info(container.rootfs).uuid
    return BeforeStill(init=init, boot=boot, cgroup=cgroup, rootfs_uuid=rootfs_uuid)


def init_of(container: lxc.Container) -> Process | None:
    """Identifies a start of a container: its PID 1. None if LXC knows of none."""
    with contextlib.suppress(MigratorError, OSError):
        return Process.at(container.init_pid)
    return None


def is_known(migration: Migration, container: lxc.Container) -> bool | None:
    """Whether the start that LXC knows of is the one on record; None if LXC knows of none."""
    found = init_of(container)
    return None if found is None else _is_on_record(migration, found)


def _is_on_record(migration: Migration, found: Process) -> bool:
    """Older versions did not record when it began, nor in which boot."""
    pid, began = migration.still.first
    return _in_this_boot(migration) and found.pid == pid and began in (None, found.start)


def _in_this_boot(migration: Migration) -> bool:
    return migration.still.boot in (None, boot_clock.BOOT_ID.read_text().strip())


def are_here(migration: Migration) -> bool:
    """Whether any process is alive in the cgroup that was frozen or stopped, other than of a start made there since."""
    cgroup = migration.still.cgroup
    if not cgroup or not _in_this_boot(migration) or not cgroups.populated(cgroup):
        return False
    if first_is_here(migration):
        return True
    return (migration.still.boot is not None and not _was_started_anew(migration)
            and not _is_anothers(migration, cgroup))


def are_left(migration: Migration) -> bool:
    """As `are_here`, but of that very start only: one that LXC has lost track of does not count and is left alone."""
    return are_here(migration) and (first_is_here(migration) or not _is_lost_there(migration))


def _is_lost_there(migration: Migration) -> bool:
    rootfs, cgroup = _rootfs(migration), migration.still.cgroup
    return any(second_start.is_on(pid, rootfs)
               or second_start.is_called_so(pid, migration.name, migration.lxcpath, cgroup)
               for pid in cgroups.processes(cgroup))


def _rootfs(migration: Migration) -> Path:
    with contextlib.suppress(ContainerNotFound):
        return lxc.Container(migration.name, migration.lxcpath).rootfs
    return Layout.of(migration).rootfs


def on_disk(migration: Migration, limit: float = 0.0) -> int | None:
    """PID 1 of a start that lives on its disk, even if LXC has lost track of it; None if the frozen one is there.

    A start that ends within `limit` seconds does not count.
    """
    return None if first_is_here(migration) else second_start.on_disk(
        migration.name, migration.lxcpath, _rootfs(migration), migration.still.cgroup, limit)


def doubt(migration: Migration, pid: int) -> str:
    """What is uncertain about the process that `on_disk` found; see `second_start.doubt`."""
    return second_start.doubt(pid, migration.name, _rootfs(migration))


def _is_anothers(migration: Migration, cgroup: str) -> bool:
    """Whether that cgroup now belongs to a container of the same name in another LXC path, judged by its disk.

    LXC gives the cgroup to each in turn. A process about which nothing can be learned, because it is just ending,
    decides nothing; if there are no others, they count as ours.
    """
    uuid = migration.copy.rootfs_uuid
    if not uuid:
        return False
    found = _disks_of(cgroups.processes(cgroup)).values()
    return bool(found) and uuid not in found


def _disk_of(pid: int) -> str | None:
    """The uuid of the subvolume that a process has its root in; "" if it is not in one, None if the process has ended.
    """
    return _disks_of([pid]).get(pid)


def _disks_of(pids: list[int]) -> dict[int, str]:
    found = forked.answers(pids, _uuid_of)
    return {pid: str(uuid or "") for pid, uuid in found.items() if uuid is not False}


def _uuid_of(root: Path) -> str | bool:
    with contextlib.suppress(MigratorError, OSError):
        return btrfs.uuid_around(root)
    return False  # it has been removed


def is_shown(migration: Migration, disks: set[str]) -> bool:
    """For what `first_is_here` found: whether it is certainly that start, so that it may be ended.

    Decided by what is on record. If an older version recorded only the pid, the process's root must also be on one of
    `disks` (subvolume uuids).
    """
    pid, began = migration.still.first
    return (began is not None and migration.still.boot is not None) or _disk_of(pid) in disks


def was_thawed(migration: Migration) -> bool:
    """Whether what was frozen or stopped is running, for instance because someone typed lxc-unfreeze."""
    if not first_is_here(migration):
        return False
    with contextlib.suppress(FileNotFoundError):  # it has ended
        return not (migration.memory and lxc.is_held(Path(migration.still.cgroup)))
    return False


def first_is_here(migration: Migration) -> bool:
    """Whether PID 1 of that start is alive in that cgroup, and with it all of the container's memory."""
    cgroup = migration.still.cgroup
    pid = migration.still.first[0]
    if not cgroup or not _in_this_boot(migration) or not cgroups.has_process(cgroup, pid):
        return False
    try:
        return _is_on_record(migration, Process.at(pid))
    except (FileNotFoundError, ProcessLookupError):
        return False


def require_none(migration: Migration) -> None:
    """Raise StartFailed while a process that LXC no longer knows of is alive where the container was frozen.

    Processes of another start do not count.
    """
    until = time.monotonic() + lxc.END_LIMIT  # its PID 1 has ended, so the others are about to
    while are_left(migration):
        if time.monotonic() > until:
            cgroup = migration.still.cgroup
            found = ", ".join(map(str, lxc.processes(Path(cgroup))[:5]))
            raise StartFailed(name=migration.name, log="not there", reason=(
                f"LXC no longer knows of it, but processes of it are alive in {cgroup}: {found}"))
        time.sleep(lxc.POLL)


def _was_started_anew(migration: Migration) -> bool:
    """Whether LXC knows another start of it."""
    with contextlib.suppress(MigratorError):
        return is_known(migration, lxc.Container(migration.name, migration.lxcpath)) is False
    return False
