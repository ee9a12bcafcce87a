# SPDX-License-Identifier: GPL-2.0-or-later
"""What runs on the destination though its journal does not say so: that is an older one, put back from a backup, or was
lost. It is told by what it lives in.
"""

from __future__ import annotations

from migrator import advice
from migrator.advice import this_host
from migrator.errors import CopyNotEnded
from migrator.journal import Migration
from migrator.layout import Layout
from stages import left_running


def refuse(migration: Migration) -> None:
    """Of what has never run here, for all that is on record: raises CopyNotEnded where it lives all the same.

    To be asked before any answer by which the source thaws. A disk that is not there shows nothing, and keeps nobody.
    """
    if found := left_running.in_own(Layout(migration.lxcpath, migration.name, migration.id)):
        raise CopyNotEnded(name=migration.name, place=f"what migration {migration.id} has brought to {this_host()}",
                           pids=",".join(map(str, found)), next=advice.command("rollback@source", migration))
