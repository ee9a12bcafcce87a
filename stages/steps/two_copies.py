# SPDX-License-Identifier: GPL-2.0-or-later
"""What the destination says if its source runs the container again and something of it runs here too."""

from __future__ import annotations

import contextlib
import shlex

from migrator.copies import second_start
from migrator.errors import MigratorError
from migrator.errors.ownership import TwoCopies
from migrator.host import lxc
from migrator.record import next_commands
from migrator.record.journal import Migration
from migrator.record.migration_paths import Layout
from migrator.record.next_commands import this_host
from stages.steps import renamed, settling


def of(migration: Migration) -> TwoCopies:
    return TwoCopies(name=migration.name, there=migration.name, destination=this_host(), source=migration.peer,
                     lxcpath=shlex.quote(str(migration.lxcpath)), path=next_commands.path(migration))


def refuse(migration: Migration) -> None:
    """Raise TwoCopies if anything of it runs by now.

    It may have been started right before its fence was there, or be lost to LXC, or be a copy of its disk under another
    name, or have its MAC addresses. Someone who merely looks into its root file system does not count.

    The error names what runs: what is in its place may well be stopped, and then there is nothing to stop by its name.
    """
    found = [pid for pid in renamed.living(migration, Layout.of(migration))
             if not second_start.is_visitor(pid)]
    error = of(migration)
    if found:
        error.instead = (f"Keep one of them. To give up the one on {this_host()}, run there: {_end(migration, found)} "
                         f"-- and then: {next_commands.command('resume', migration)}")
    if found or settling.is_at_work(migration):
        raise error


def _end(migration: Migration, pids: list[int]) -> str:
    """How to end it: by its name only if LXC knows it by that."""
    for pid in pids:
        with contextlib.suppress(MigratorError, OSError, ValueError):
            name = lxc.cgroup_of(pid).name.removeprefix("lxc.payload.")
            container = lxc.Container(name, migration.lxcpath)
            if container.init_pid in pids:
                return shlex.join(["lxc-stop", "-k", "-P", str(migration.lxcpath), container.name])
    first = next((pid for pid in pids if second_start.is_start(pid)), None)
    which = pids if first is None else [first]
    return f"kill -9 {' '.join(map(str, which))}, once you have seen what that is"
