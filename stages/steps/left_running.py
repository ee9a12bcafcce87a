# SPDX-License-Identifier: GPL-2.0-or-later
"""What a restore has left running on the destination: told by what it works in, and ended."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import time
from pathlib import Path

from migrator.copies import forked, second_start
from migrator.criu import criu_dump
from migrator.errors import MigratorError
from migrator.host import btrfs, lxc, roots
from migrator.record import container_lock
from migrator.record.migration_paths import Layout


def in_own(layout: Layout) -> list[int]:
    """The processes of any containers that live in a subvolume that this migration has made, unless that was put aside.
    """
    return [pid for pid in all_in_own(layout, lxc.container_processes("")) if not _is_in(layout.set_aside(), pid)]


def all_in_own(layout: Layout, pids: list[int]) -> list[int]:
    """Those of these processes that live in such a subvolume, wherever that is by now.

    Be their root only a folder in there, as after a chroot(2) of their own.
    """
    return forked.those(pids, functools.partial(is_in_own, layout))


def is_in_own(layout: Layout, root: Path) -> bool:
    """Whether the root of a process lies there."""
    if _is_own(layout, root):
        return True
    with contextlib.suppress(MigratorError, OSError):
        return btrfs.parent_of(btrfs.id_of(root), root) in {btrfs.info(each).uuid for each in layout.own_snapshots()}
    return False


def _is_own(layout: Layout, root: Path) -> bool:
    """Whether the root of a process is such a subvolume."""
    with contextlib.suppress(MigratorError, OSError):
        return layout.is_own(root)
    return False


def kill(layout: Layout) -> list[int]:
    """End what lives in a subvolume that this migration has made, half restored or not; returns what does not end.

    LXC may know nothing of it, and the subvolume be in another place by now. What was put aside is only looked at by
    who has a reason: what runs in there is another container.
    """
    until = time.monotonic() + lxc.STOP_LIMIT
    while True:
        pids = {pid: container_lock.began(pid) for pid in lxc.container_processes(layout.name)}
        left = [pid for pid in forked.those(list(pids), functools.partial(_is_own, layout))
                if not _is_in(layout.set_aside(), pid)]
        if not left or time.monotonic() > until:
            return left
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                # To ask may have taken long, and another process have its id by now.
                if container_lock.began(pid) == pids[pid]:
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def live_below(layout: Layout) -> list[int]:
    """The first processes of containers that live in such a subvolume, and have only a folder in there as their root.

    As what was started without its memory may have; or with its root elsewhere, in a cgroup of its name. Or it is a
    container that somebody has made in that folder, or another one of that name: so nothing of this is ended here.
    """
    starts = [pid for pid in lxc.container_processes(layout.name) if second_start.is_start(pid)]
    below = [pid for pid in forked.those(starts, lambda root: is_in_own(layout, root) and not _is_own(layout, root))
             if not _is_in(layout.set_aside(), pid)]
    return sorted({*below, *called_so(layout, lxc.END_LIMIT)})


def lives_elsewhere(layout: Layout) -> bool:
    """Whether a start of what is in its place lives with its root outside of it, and its monitor may have ended."""
    return bool(called_so(layout))


def called_so(layout: Layout, limit: float = 0.0) -> list[int]:
    """The first processes of such starts. What ends within `limit` seconds does not count."""
    until = time.monotonic() + limit
    while True:
        found = [pid for pid in lxc.container_processes(layout.name)
                 if second_start.is_called_so(pid, layout.name, layout.lxcpath)]
        if not found or time.monotonic() >= until:
            return found
        time.sleep(0.02)


def live_in(name: str, rootfs: Path) -> list[int]:
    """The processes of a container that have their root in this folder, whoever has made it."""
    return [pid for pid in lxc.container_processes(name) if _is_in([rootfs], pid)]


def _is_in(folders: list[Path], pid: int) -> bool:
    """Whether a process has its root in one of these."""
    with contextlib.suppress(OSError):
        return any(roots.is_in(pid, folder) for folder in folders)
    return False


def end_criu(layout: Layout) -> None:
    """CRIU, and who has called it, told by this migration's images folder in their arguments."""
    for pid in criu_dump.processes(layout.dumped_into()):
        with contextlib.suppress(ProcessLookupError):
            # lxc-checkpoint leads a group (see `run`): the programs that it has started go with it.
            (os.killpg if os.getpgid(pid) == pid else os.kill)(pid, signal.SIGKILL)


def wait_stopped(container: lxc.Container, limit: float = 10.0) -> None:
    """By LXC's word, as its monitor has something left to do; for `limit` seconds at most."""
    end = time.monotonic() + limit
    while lxc.told_state(container) not in ("STOPPED", "ABORTING") and time.monotonic() < end:
        time.sleep(0.02)
