# SPDX-License-Identifier: GPL-2.0-or-later
"""What a restore has left running on the destination: recognised by what it lives in, and ended."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import time
from collections.abc import Collection
from pathlib import Path

from migrator.base import process_id
from migrator.copies import forked, second_start
from migrator.criu import criu_dump
from migrator.errors import MigratorError
from migrator.host import btrfs, lxc, roots
from migrator.record.migration_paths import Layout


def in_own(layout: Layout) -> list[int]:
    """The processes of any containers that live in a subvolume made by this migration, except one that was put aside.
    """
    return [pid for pid in all_in_own(layout, lxc.container_processes("")) if not _is_in(layout.set_aside(), pid)]


def all_in_own(layout: Layout, pids: list[int]) -> list[int]:
    """Those of these processes that live in such a subvolume, wherever that is by now.

    Even if their root is only a directory in there, as after a chroot(2) of their own.
    """
    return forked.those(pids, functools.partial(is_in_own, layout))


def tried_out(layout: Layout, pids: list[int], rounds: Collection[str]) -> list[int]:
    """Those that live in a subvolume made from the snapshot of one of these rounds, by its uuid on the source.

    A restore makes its root file system from the increment, which comes after all of them.
    """
    def is_of_a_round(root: Path) -> bool:
        with contextlib.suppress(MigratorError, OSError):
            made = (btrfs.info(each) for each in layout.own_snapshots())
            its = {each.uuid for each in made if each.stream_uuid in rounds}
            return btrfs.parent_of(btrfs.id_of(root), root) in its
        return False

    return forked.those(pids, is_of_a_round)


def is_in_own(layout: Layout, root: Path) -> bool:
    """Whether the root of a process is in such a subvolume."""
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


def _is_restored(layout: Layout, number: int, root: Path) -> bool:
    """Whether the root of a process is a subvolume made from the snapshot of round `number`."""
    with contextlib.suppress(MigratorError, OSError):
        return layout.is_made_of(root, number)
    return False


def kill(layout: Layout, number: int) -> list[int]:
    """End what lives in a root file system that a restore made, half restored or not; returns what does not end.

    Every restore makes it from the snapshot of the last increment, round `number`. What was made from an earlier round
    is a container that somebody is trying out, and not ours to end. LXC may know nothing of what has to end, and the
    subvolume may be elsewhere by now. What was put aside is only considered if there is reason to: what runs in there
    is another container.
    """
    until = time.monotonic() + lxc.STOP_LIMIT
    while True:
        pids = {pid: process_id.began(pid) for pid in lxc.container_processes(layout.name)}
        left = [pid for pid in forked.those(list(pids), functools.partial(_is_restored, layout, number))
                if not _is_in(layout.set_aside(), pid)]
        if not left or time.monotonic() > until:
            return left
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                # Asking may have taken long, and the pid may be another process's by now.
                if process_id.began(pid) == pids[pid]:
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def live_below(layout: Layout) -> list[int]:
    """PID 1 of each container that lives in such a subvolume with only a directory of it as its root.

    A container started without its memory may be like that; or it may have its root elsewhere, and be in a cgroup of
    its name. But it may also be a container that someone has made in that directory, or another one of that name: so
    nothing is ended here.
    """
    starts = [pid for pid in lxc.container_processes(layout.name) if second_start.is_start(pid)]
    below = [pid for pid in forked.those(starts, lambda root: is_in_own(layout, root) and not _is_own(layout, root))
             if not _is_in(layout.set_aside(), pid)]
    return sorted({*below, *called_so(layout, lxc.END_LIMIT)})


def lives_elsewhere(layout: Layout) -> bool:
    """Whether a start of what is in its place lives with its root outside of it; its monitor may have ended."""
    return bool(called_so(layout))


def called_so(layout: Layout, limit: float = 0.0) -> list[int]:
    """PID 1 of each such start. One that ends within `limit` seconds does not count."""
    until = time.monotonic() + limit
    while True:
        found = [pid for pid in lxc.container_processes(layout.name)
                 if second_start.is_called_so(pid, layout.name, layout.lxcpath)]
        if not found or time.monotonic() >= until:
            return found
        time.sleep(0.02)


def live_in(name: str, rootfs: Path) -> list[int]:
    """The processes of a container that have their root in this directory, whoever made it."""
    return [pid for pid in lxc.container_processes(name) if _is_in([rootfs], pid)]


def _is_in(folders: list[Path], pid: int) -> bool:
    """Whether a process has its root in one of these."""
    with contextlib.suppress(OSError):
        return any(roots.is_in(pid, folder) for folder in folders)
    return False


def end_criu(layout: Layout) -> None:
    """End CRIU and its caller, recognised by this migration's images directory among their arguments."""
    for pid in criu_dump.processes(layout.dumped_into()):
        with contextlib.suppress(ProcessLookupError):
            # lxc-checkpoint leads a process group (see `run`), so the programs that it has started go with it.
            (os.killpg if os.getpgid(pid) == pid else os.kill)(pid, signal.SIGKILL)


def wait_stopped(container: lxc.Container, limit: float = 10.0) -> None:
    """Wait until LXC reports it stopped, because its monitor has work left to do; `limit` in seconds."""
    end = time.monotonic() + limit
    while lxc.told_state(container) not in ("STOPPED", "ABORTING") and time.monotonic() < end:
        time.sleep(0.02)
