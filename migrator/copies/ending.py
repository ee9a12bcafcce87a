# SPDX-License-Identifier: GPL-2.0-or-later
"""Ends what a migration froze or stopped on its source: that one start of the container and no other.

LXC's programs identify a container by its name, and that name may belong to someone else's by now: when the monitor of
a frozen copy has ended, LXC reports it as stopped, and anyone may then destroy it and create a new one in its place. So
these programs are used only if LXC knows the very start that is on record.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from migrator.base import log
from migrator.base.run import run
from migrator.copies import remains
from migrator.errors.containers import ContainerNotFound
from migrator.host import lxc
from migrator.record.journal import Migration

POLL = 0.01  # seconds


def kill(migration: Migration) -> None:
    """End every process of it at once, even if frozen, without letting any of them run again.

    `cgroup.kill` does exactly that, whereas `lxc-stop` would thaw before the processes are gone. LXC's monitor, if it
    is alive, then cleans up. Check afterwards that the cgroup is empty: processes in uninterruptible sleep take longer.
    """
    if remains.are_left(migration):
        with contextlib.suppress(FileNotFoundError):  # all have ended
            (Path(migration.still.cgroup) / "cgroup.kill").write_text("1")
        lxc.wait(lambda: not remains.are_left(migration), lxc.STOP_LIMIT)
    with contextlib.suppress(ContainerNotFound):
        container = lxc.Container(migration.name, migration.lxcpath)
        done = lxc.wait(lambda: _is_done(migration, container), lxc.STOP_LIMIT)
        if not done and remains.is_known(migration, container):
            run(["lxc-stop", "-k", "-n", migration.name, "-P", migration.lxcpath], limit=lxc.STOP_LIMIT)


def _is_done(migration: Migration, container: lxc.Container) -> bool:
    """Whether LXC has nothing to do with that start any more."""
    return lxc.told_state(container) == "STOPPED" or remains.is_known(migration, container) is False


def stop_command(container: lxc.Container) -> list[str]:
    """A command that asks PID 1 of the container to end, using the signal that its configuration names."""
    return ["lxc-stop", "-n", container.name, "-P", str(container.lxcpath), "--nowait"]


def stop(migration: Migration, container: lxc.Container, limit: float) -> bool:
    """Shut the container down; kill it after `limit` seconds. Returns whether it had to be killed.

    It has ended when nothing is alive in its cgroup any more, whatever LXC says. We do the waiting ourselves, so that
    no program stays behind, waiting and then killing, if this one is killed.
    """
    if remains.is_known(migration, container):
        run(stop_command(container), check=False)
    end = time.monotonic() + limit
    while remains.are_left(migration) or (container.state != "STOPPED"
                                          and remains.is_known(migration, container) is not False):
        if time.monotonic() > end:
            log.warning(f"{container.name} has not ended within {limit:g} seconds: killing it")
            kill(migration)
            return True
        time.sleep(POLL)
    return False
