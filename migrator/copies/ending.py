# SPDX-License-Identifier: GPL-2.0-or-later
"""Ending what a migration has brought to a stand on its source: that start of the container, and no other.

LXC's programs know a container by its name, and who is called so may be somebody else's by now: where the monitor of a
frozen copy has ended, LXC says that it is stopped, and whoever then destroys it and makes a new one in its place may.
So each of them is used only where LXC knows the very start that is on record.
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
    """End every process of it at once, also a frozen one, without letting any of them run once more.

    `cgroup.kill` does just that; `lxc-stop` would thaw before the processes are gone. LXC's monitor, if it lives, then
    cleans up. Look afterwards whether the cgroup is empty: what the kernel cannot interrupt takes longer.
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
    """LXC has nothing to do with that start any more."""
    return lxc.told_state(container) == "STOPPED" or remains.is_known(migration, container) is False


def stop_command(container: lxc.Container) -> list[str]:
    """Asks the first process to end, with the signal that the container's configuration names."""
    return ["lxc-stop", "-n", container.name, "-P", str(container.lxcpath), "--nowait"]


def stop(migration: Migration, container: lxc.Container, limit: float) -> bool:
    """End it in order; past `limit` seconds kill it. Returns whether it had to be killed.

    It has ended when nothing of it lives in its cgroup any more, whatever LXC says.
    We wait ourselves, so that nothing is left waiting, and killing, when this program is killed.
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
