# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a restore that was killed, or could not record its end, has brought the container up.

Its users may have been answered by it for hours. LXC's word does not settle that: it is FROZEN where somebody has
frozen it since, STOPPED as soon as its monitor has ended, whatever lives on (see `migrator.copies.remains`), and none
at all where that monitor stands still. But what CRIU has left half restored, killed itself, lives too, and never runs.
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
    """Whether it was let run, and something of it lives in its root file system in its place; if without its monitor.

    With its memory that takes more than the mark, which is made before CRIU lets go of it: also that it has done so,
    and has ended, within `limit` seconds. In another boot than the mark's nothing is left of what CRIU had made, so who
    lives there was started since. Not what lives in another root file system, as that of an earlier stay, which may
    have been given back by then; as far as the snapshots tell. Raises OSError where it cannot be looked at.
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
    """That of a container which runs by LXC's word, or ran until somebody has frozen it."""
    with contextlib.suppress(MigratorError, OSError):
        if container.state in ("RUNNING", "FROZEN"):
            return container.cgroup
    return None


def complete(migration: Migration, container: lxc.Container, layout: Layout) -> None:
    """What is left to do for one that has come up, once that is on record.

    What LXC does not call running keeps its fence until `finish`, so that none is started beside it.
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
