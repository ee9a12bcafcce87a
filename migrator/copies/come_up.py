# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a restore that was killed, or could not record its end, brought the container up.

The container may have been answering its users for hours. LXC cannot settle the question: it says FROZEN if someone has
frozen the container since, STOPPED as soon as the monitor has ended whatever is still alive (see
`migrator.copies.remains`), and nothing at all if the monitor hangs. On the other hand, processes left half restored by
a CRIU that was killed are alive too, but will never run.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from migrator.base import boot_clock, log
from migrator.config import container_config
from migrator.copies import no_memory, origins
from migrator.criu import at_restore, criu_dump, ran_mark, restore
from migrator.errors import MigratorError
from migrator.host import lxc, network
from migrator.record.journal import Migration
from migrator.record.migration_paths import Layout


def lives(migration: Migration, layout: Layout, limit: float) -> bool:
    """Whether the container was let run and something of it lives in the root file system in its place, monitor or not.

    With memory it takes more than the mark, which is made before CRIU lets go of the processes: CRIU must also have let
    go and ended, within `limit` seconds. If the mark is from another boot, nothing is left of what CRIU made, so
    whatever lives there was started since. What lives in another root file system does not count, as far as the
    snapshots tell: that of an earlier stay, say, which may have been given back in the meantime. Raises OSError if this
    cannot be examined.
    """
    mark = ran_mark.mark(layout.spool)
    if not ran_mark.was(mark) or not lxc.runs_in(layout.name, layout.rootfs):
        return False
    if layout.own_snapshots() and not origins.has_its_disk(migration):
        return False
    if not migration.memory:
        return not no_memory.is_starting(migration.id)
    if ran_mark.boot(mark) not in ("", boot_clock.BOOT_ID.read_text().strip()):
        return True
    return not criu_dump.left_after(limit, layout.dumped_into()) and any(
        at_restore.has_let_go(folder) for folder in layout.image_folders())


def cgroup(container: lxc.Container) -> Path | None:
    """The cgroup of a container that runs according to LXC, or that did until someone froze it."""
    with contextlib.suppress(MigratorError, OSError):
        if container.state in ("RUNNING", "FROZEN"):
            return container.cgroup
    return None


def complete(migration: Migration, container: lxc.Container, layout: Layout) -> None:
    """Do what is left to do for a container that has come up, once that is on record.

    A container that LXC does not report as running keeps its fence until `finish`, so that none is started beside it.
    """
    known = cgroup(container) is not None
    if known:
        container_config.unfence(layout.container, migration.id)
    if migration.memory:
        restore.complete(container, layout)
    if not known:
        log.warning(f"{migration.name} is still alive here, although LXC does not know of it, or does not respond: it "
                    "stays fenced. Do not start a second one")
        return
    network.bring_back_dad(container.init_pid, migration.still.dad)
    network.announce(container.init_pid).join()
