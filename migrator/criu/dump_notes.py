# SPDX-License-Identifier: GPL-2.0-or-later
"""What CRIU does not dump but the restore needs: noted in files beside its images, which travel with them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from migrator.base.figures import size
from migrator.criu import criu_dump, mount_flags, pressure_triggers, slave_mounts, systemd_managers, terminals
from migrator.criu.terminals import Terminal
from migrator.errors.memory import DumpFailed
from migrator.host import cgroup_limits, cgroups
from migrator.host.mount_tables import TooManyMounts


def found(name: str, pid: int, cgroup: str, ttys: Sequence[Terminal]) -> dict[str, bytes]:
    """The notes on container `name`, whose PID 1 is `pid`, by file name.

    Raises DumpFailed if the destination would not accept one or more is mounted than is read, OSError if a process is
    just ending.
    """
    try:
        notes = _taken(pid, cgroup, ttys)
    except TooManyMounts as error:
        raise DumpFailed(name=name, log="not there", reason=str(error)) from error
    for terminal in ttys:
        if terminal.console:
            notes[criu_dump.CONSOLE_FILE] = terminal.id
    encoded = {file: os.fsencode(text) for file, text in notes.items()}
    for file, data in encoded.items():
        if len(data) > criu_dump.NOTE_LIMIT:
            raise DumpFailed(name=name, log="not there",
                             reason=f"{file} would be larger than {size(criu_dump.NOTE_LIMIT)}")
    return encoded


def _taken(pid: int, cgroup: str, ttys: Sequence[Terminal]) -> dict[str, str]:
    processes = cgroups.processes(cgroup)
    return {
        terminals.RECORD: "".join(terminal.line() for terminal in ttys),
        cgroups.RECORD: cgroups.owners(cgroup),
        cgroup_limits.RECORD: cgroup_limits.record(cgroup),
        cgroup_limits.CONTROLLERS: cgroup_limits.controllers(cgroup),
        mount_flags.RECORD: mount_flags.record([pid, *processes]),
        slave_mounts.RECORD: slave_mounts.record(processes),
        pressure_triggers.RECORD: pressure_triggers.record(processes),
        systemd_managers.RECORD: systemd_managers.record(processes),
    }


def write(images: Path, notes: Mapping[str, bytes]) -> None:
    """Put them beside the images, where no file of these names may be yet."""
    for name, data in notes.items():
        with (images / name).open("xb") as file:
            file.write(data)
