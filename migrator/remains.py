# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether what a migration has brought to a stand on its source is still there: told by its cgroup.

Not by LXC: that says STOPPED as soon as the container's monitor has ended, killed when memory was short for example,
while all tasks live on (the monitor answers for the container on a socket, see lxc_getstate in liblxc's state.c). Nor
is a configuration needed, which may have been renamed or removed meanwhile.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

from migrator import cgroups, clock, holder, lxc
from migrator.errors import MigratorError, StartFailed
from migrator.journal import Migration


def record(container: lxc.Container) -> dict[str, Any]:
    """What the journal must know of a container that runs, before it is brought to a stand."""
    found: dict[str, Any] = {"init": init_of(container), "boot": clock.BOOT_ID.read_text().strip(), "cgroup": ""}
    with contextlib.suppress(MigratorError, OSError):
        found["cgroup"] = str(container.cgroup)
    return found


def init_of(container: lxc.Container) -> list[int] | None:
    """Which start of a container this is: its first process, and when that began, in ticks since the host's boot.

    None where LXC knows of none.
    """
    with contextlib.suppress(MigratorError, OSError):
        pid = container.init_pid
        return [pid, holder.start_time(pid)]
    return None


def are_here(migration: Migration) -> bool:
    """Whether any process lives in the cgroup that was brought to a stand, but one that was started there since."""
    cgroup, boot = migration.detail.get("cgroup", ""), migration.detail.get("boot")
    if not cgroup or boot not in (None, clock.BOOT_ID.read_text().strip()) or not cgroups.populated(cgroup):
        return False
    if first_is_here(migration):
        return True
    return boot is not None and not _was_started_anew(migration)


def recorded_init(migration: Migration) -> list[Any]:
    """As `init_of` has found it before it was brought to a stand; older versions recorded its id alone."""
    return migration.detail.get("init") or [migration.detail.get("pid"), None]


def was_thawed(migration: Migration) -> bool:
    """Whether what was brought to a stand goes on, as after an lxc-unfreeze that somebody has typed."""
    if not first_is_here(migration):
        return False
    with contextlib.suppress(FileNotFoundError):  # it has ended
        return not (migration.memory and lxc.is_frozen(Path(migration.detail["cgroup"])))
    return False


def first_is_here(migration: Migration) -> bool:
    """Whether the first process of that start lives in that cgroup, and with it all the container's memory."""
    cgroup, boot = migration.detail.get("cgroup", ""), migration.detail.get("boot")
    init = recorded_init(migration)
    if not cgroup or boot not in (None, clock.BOOT_ID.read_text().strip()) or init[0] not in cgroups.processes(cgroup):
        return False
    try:
        return init[1] is None or holder.start_time(init[0]) == init[1]
    except (FileNotFoundError, ProcessLookupError):
        return False


def require_none(migration: Migration) -> None:
    """Raises StartFailed while a process lives where the container was frozen: what LXC does not know of any more."""
    until = time.monotonic() + lxc.END_LIMIT  # its first process has ended: the others do, too
    while are_here(migration):
        if time.monotonic() > until:
            cgroup = migration.detail["cgroup"]
            found = ", ".join(map(str, lxc.processes(Path(cgroup))[:5]))
            raise StartFailed(name=migration.name, log="not there", reason=(
                f"LXC does not know of it any more, but processes of it live in {cgroup}: {found}"))
        time.sleep(lxc.POLL)


def _was_started_anew(migration: Migration) -> bool:
    """LXC knows another start of it."""
    with contextlib.suppress(MigratorError):
        init = init_of(lxc.Container(migration.name, migration.lxcpath))
        return init is not None and init[0] != recorded_init(migration)[0]
    return False
