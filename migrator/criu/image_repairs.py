# SPDX-License-Identifier: GPL-2.0-or-later
"""Put right what CRIU got wrong, or left out, in the images of a dump, before they are sent."""

from __future__ import annotations

from pathlib import Path

from migrator.criu import cgroup_mounts, executables, image_messages, slave_mounts, terminal_mounts, tty_image
from migrator.host import cgroups


def repair(images: Path, cgroup: str) -> None:
    """Repair the images of the container in `cgroup`; raises OSError, and ValueError if images are damaged."""
    processes = cgroups.processes(cgroup)
    tty_image.mend(images, tty_image.sessions(processes))
    cgroup_mounts.name_roots(images, processes, cgroup.removeprefix(cgroups.TOP))
    image_messages.rewrite_mounts(images, terminal_mounts.separated)
    image_messages.rewrite_mounts(images, slave_mounts.separated)
    executables.separate(images)
