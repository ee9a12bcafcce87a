# SPDX-License-Identifier: GPL-2.0-or-later
"""Empty cgroups that LXC has left behind because it was killed."""

from __future__ import annotations

import contextlib
import time

from migrator.base import deep_folders
from migrator.host import lxc

LIVED_IN_LIMIT = 1.0  # seconds that killed processes in there get to end: whatever lives on is another container's


def drop(name: str, folder: str = "") -> None:
    """Remove empty cgroups left by an LXC that was killed during a restore.

    The next start would have to use other names, and nobody would ever remove these. One with a live process is another
    container's and stays; so does an empty one while a monitor of that name is alive: that of another LXC path may be
    about to fill it.

    They are in `folder` below the top: lxc.cgroup.dir (lxc.container.conf(5)), which stays. Nothing above it is
    touched.
    """
    if ".." in folder.split("/"):
        return
    tops = [lxc.CGROUP / folder.strip("/") / f"lxc.{kind}.{name}" for kind in ("payload", "monitor")]

    def gone() -> bool:
        for top in tops:
            for folder, _ in reversed(list(deep_folders.walk(str(top)))):
                with contextlib.suppress(OSError):
                    deep_folders.rmdir(folder)
        return not any(top.is_dir() for top in tops)

    begun = time.monotonic()
    while (lived_in := any(map(lxc.processes, tops))) or not gone():
        if time.monotonic() - begun >= (min(LIVED_IN_LIMIT, lxc.END_LIMIT) if lived_in else lxc.END_LIMIT):
            break
        time.sleep(lxc.POLL)
