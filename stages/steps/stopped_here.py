# SPDX-License-Identifier: GPL-2.0-or-later
"""What ran on the destination and was stopped there before the source finished: it may be running on the source again.

For example after a reboot, during which the source may have been forced to take it back. If it has lost its fence, as a
restored container has, nothing keeps LXC from starting it; so nobody is told to before the source was asked.
"""

from __future__ import annotations

import contextlib

from migrator.errors.containers import ContainerNotFound
from migrator.record import lxc_disk
from migrator.record.journal import Migration
from migrator.record.migration_paths import Layout
from migrator.record.states import State
from stages.steps import settling


def is_stopped(migration: Migration) -> bool:
    """Whether it has run here and does not now, fenced or not.

    A container that LXC no longer knows cannot be started by hand and does not count. Raises DiskAway.
    """
    if migration.state is not State.RESTORED:
        return False
    layout = Layout.of(migration)
    with contextlib.suppress(ContainerNotFound):
        return not (settling.has_left(migration) or lxc_disk.is_removed(layout) or settling.is_at_work(migration))
    return False
