# SPDX-License-Identifier: GPL-2.0-or-later
"""What someone may have changed since the preflight that would be lost or sent wrongly: it is looked at once more.

All of these raise ContainerChanged, unless one of the findings in `ignore` says that this is accepted.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from migrator.errors.containers import ContainerChanged
from migrator.host import btrfs, cgroups, descent, net_state, roots
from migrator.record import next_commands
from migrator.record.journal import Migration


def error(migration: Migration, reason: str) -> ContainerChanged:
    """The error for what has changed: create-dump may be tried again."""
    return ContainerChanged(name=migration.name, reason=reason, next=next_commands.again("create-dump", migration))


def refuse_another_disk(migration: Migration, pid: int | None, rootfs: Path, ignore: Collection[str]) -> None:
    """Something may have replaced its root file system, and would be sent.

    `pid` is that of its PID 1, None if LXC knows of none.
    """
    if pid is not None and "rootfs-replaced" not in ignore and roots.is_elsewhere(pid, rootfs):
        raise error(migration, f"it lives on another disk, or in another folder, than {rootfs}")


def refuse_nested(migration: Migration, rootfs: Path, ignore: Collection[str]) -> None:
    """A snapshot leaves out subvolumes, and any user may have made one. Raises SnapshotFailed if that cannot be
    determined.
    """
    if {"nested-subvolume", "nested-unknown"} & set(ignore):
        return
    if found := btrfs.nested(rootfs):
        raise error(migration, f"its disk has subvolumes inside, which a snapshot leaves out: {found[0]}")


def refuse_frozen_besides(migration: Migration, cgroup: Path) -> None:
    """CRIU would wait forever for what a cgroup of its own keeps frozen, and cannot follow a path that is too long."""
    if besides := cgroups.frozen_besides(str(cgroup)):
        raise error(migration, cgroups.not_dumped(besides[0]))


def refuse_strangers(migration: Migration, pid: int, cgroup: Path, ignore: Collection[str]) -> None:
    """CRIU does not dump processes that were started from outside the container, whose PID 1 is `pid`."""
    if "attached-task" in ignore:
        return
    stranger = descent.stranger(pid, cgroups.processes(str(cgroup)))
    if stranger is not None:
        raise error(migration, f"process {stranger} was started from outside, as by lxc-attach, and would be lost; to "
                               "accept that: --ignore attached-task")


def refuse_encrypted(migration: Migration, pid: int, cgroup: Path, ignore: Collection[str]) -> None:
    """Connections that the kernel encrypts would go on in the clear."""
    if "kernel-encryption" in ignore:
        return
    networks = net_state.namespaces(pid, cgroups.processes(str(cgroup)))
    if len(networks) > net_state.NAMESPACES_MAX:
        raise error(migration, f"it has more than {net_state.NAMESPACES_MAX} network namespaces; --ignore "
                               "kernel-encryption lets whatever the kernel encrypts in them continue in the clear")
    if count := net_state.tls(networks):
        raise error(migration, f"the kernel encrypts {count} of its connections, which CRIU does not support; --ignore "
                               "kernel-encryption lets them continue in the clear")
