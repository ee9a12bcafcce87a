# SPDX-License-Identifier: GPL-2.0-or-later
"""Detects a running lxc-autostart, which ignores any fence written after it began.

lxc-autostart first reads the configurations of all containers, then goes through them one after the other and sleeps
for lxc.start.delay after each start, so it can take minutes. A container that is running or frozen when its turn comes
is skipped; any other is started from the configuration as it was read (main in lxc_autostart.c).

A container without `lxc.start.auto = 1` is not safe either. We can see lxc-autostart's arguments (--ignore-auto), but
not what it read: the line may have been there then and have gone since. File times do not tell either, because clocks
get set and the line may be in a file that the configuration includes.
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
# The monitor of a container it has started: forked from it without an exec, so it has the same comm.
_MONITOR = b"[lxc monitor] "


def under_way() -> int | None:
    """The process id of a running lxc-autostart that belongs to root on this host, or None.

    It is recognised by the name of the executed file (proc_pid_comm(5)). That is faster to read than everything that
    `processes` goes by, which matters because a container is standing still while we ask; and since only processes of
    root are considered, the name can be believed.
    """
    here, user = lxc.pid_namespace("self"), str(os.geteuid()).encode()
    for pid in _named():
        with contextlib.suppress(OSError):  # it has ended
            if status(pid, b"Uid")[0] != user or lxc.pid_namespace(pid) != here:
                continue  # its arguments are in its own memory, and a stranger's can make a reader wait for ever
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
    """Raise OutOfOrder while an lxc-autostart is running that may have read the configuration before it was fenced."""
    if (pid := under_way()) is not None:
        raise out_of_order(migration, stage, next_, pid)


def out_of_order(migration: Migration, stage: str, next_: str, pid: int) -> OutOfOrder:
    """The error for a caller that has to wait until that lxc-autostart has ended."""
    return OutOfOrder(
        stage=stage, next=f"once that has ended: {next_}",
        missing=f"lxc-autostart (process {pid}) is running on {next_commands.this_host()}, has already read all "
                f"configurations, and may start {migration.name} there past its fence")
