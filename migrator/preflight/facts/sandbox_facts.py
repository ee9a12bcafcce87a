# SPDX-License-Identifier: GPL-2.0-or-later
"""What keeps CRIU from restoring the mounts of services in a container, and whether it can be changed as they run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping

from migrator.criu import sandbox_mounts
from migrator.guest import live_steps
from migrator.host import inner_paths
from migrator.host.mountinfo import MountLine, parse_mountinfo
from migrator.host.proc import Status, read_text
from migrator.preflight.facts import watch_facts
from migrator.preflight.facts.mounts_seen import Mounted

CREDENTIALS_HELD = "credentials-held"  # the kind of the note that says that a unit's credentials are in use


def found(init: Status, own: Mounted, nested: Mapping[str, Mounted],
          processes: Mapping[str, Status], held: Mapping[int, Status]) -> Iterator[tuple[str, str, Status, bool]]:
    """The kind of a note, its detail, whose it is, and whether the mount that it is about is in use.

    `own` is what the first process, `init`, has mounted, and `processes` has one of each `nested` mount namespace.
    `held` has, for each mount in which something is open, who has it open.
    """
    users = {line.device: held[line.id] for each in (own, *nested.values()) for line in each.lines if line.id in held}
    for line in own.lines:
        if live_steps.credentials_of(line.type, line.target) and line.device in users:
            kind = "mount-held" if is_empty(init.pid, line, own) else CREDENTIALS_HELD
            yield kind, line.target, users[line.device], True
    outside = {line.device for line in parse_mountinfo(read_text("/proc/self/mountinfo"))} if nested else set()
    for each in sandbox_mounts.troubles(own.lines, {key: each.lines for key, each in nested.items()}, outside):
        line, process = each.line, processes[each.namespace]
        filled = each.kind == "unreachable" and live_steps.is_cured(each.kind, line.type, line.target) and not is_empty(
            process.pid, line, nested[each.namespace])
        yield f"sandbox-{each.kind}", f"{line.type} {line.target}", process, line.id in held or filled


def is_empty(pid: int, line: MountLine, mounted: Mounted) -> bool:
    """Whether nothing is in a mount, as far as that can be told without a way through what may not answer."""
    if mounted.may_wait(line.target):
        return False
    with contextlib.suppress(OSError):
        folder = inner_paths.folder(pid, line.target)
        try:  # another mount may be over it
            its = watch_facts.fdinfo(f"/proc/self/fd/{folder}", "mnt_id") == str(line.id)
            return its and not os.listdir(folder)  # noqa: PTH208
        finally:
            os.close(folder)
    return False
