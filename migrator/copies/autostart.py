# SPDX-License-Identifier: GPL-2.0-or-later
"""lxc-autostart, past which no fence holds that was written after it had begun.

It reads the configurations of all containers first, then takes these one after the other, and sleeps for
lxc.start.delay after each start: so for minutes. Who runs at his turn, or is frozen, is passed over; anybody else is
started from what was read (main in lxc_autostart.c).

A container without `lxc.start.auto = 1` is not safe from it either. Its arguments can be seen (--ignore-auto), but not
what it has read: the line may have stood there then, and be gone by now. Nor do the times of files tell: clocks are
set, and the line may stand in a file that the configuration includes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from migrator.errors.containers import OutOfOrder
from migrator.host import lxc
from migrator.host.processes import status
from migrator.record import next_commands
from migrator.record.journal import Migration

NAME = b"lxc-autostart"
_MONITOR = b"[lxc monitor] "  # of what it has started: forked from it, and executes nothing else


def under_way() -> int | None:
    """The process id of one of root's on this host, None where there is none.

    By the name of the file that it executes (proc_pid_comm(5)), which is read faster than all that `processes` goes by:
    this is asked while a container stands still, and nobody but root is believed.
    """
    here, user = lxc.pid_namespace("self"), str(os.geteuid()).encode()
    for pid in _named():
        with contextlib.suppress(OSError):  # it has ended
            if status(pid, b"Uid")[0] != user or lxc.pid_namespace(pid) != here:
                continue  # its arguments lie in its memory, and a stranger can have who reads them wait for ever
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            if words and not words.startswith(_MONITOR):
                return pid
    return None


def _named() -> Iterator[int]:
    for name in os.listdir("/proc"):  # noqa: PTH208 -- faster
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/comm", "rb", buffering=0) as file:  # noqa: PTH123
                if file.read() == NAME + b"\n":
                    yield int(name)


def refuse(migration: Migration, stage: str, next_: str) -> None:
    """Raises OutOfOrder while one is under way that may have read the configuration without its fence."""
    if (pid := under_way()) is not None:
        raise out_of_order(migration, stage, next_, pid)


def out_of_order(migration: Migration, stage: str, next_: str, pid: int) -> OutOfOrder:
    """For who waits until that one has ended."""
    return OutOfOrder(
        stage=stage, next=f"once that has ended: {next_}",
        missing=f"lxc-autostart (process {pid}) is running on {next_commands.this_host()}, has already read all "
                f"configurations, and may start {migration.name} there past its fence")
