# SPDX-License-Identifier: GPL-2.0-or-later
"""Which container a copy is of: it may have had another name on each host that it has been on.

A container's *origin* is the id of its first migration. It travels along with each later one, so that a host which a
container comes back to knows the fenced copy of its earlier stay by it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from migrator import container_config, names
from migrator.advice import this_host
from migrator.errors import ContainerExists, UsageError
from migrator.journal import Journal, Migration
from migrator.layout import Layout
from migrator.states import Role, State


def new_name(args: argparse.Namespace) -> str:
    """What --new-name says, checked; "" where the container keeps its name. Raises InvalidName."""
    wanted = getattr(args, "new_name", None)
    return names.container_name(wanted) if wanted else ""


def name_there(args: argparse.Namespace, migration: Migration | None, name: str) -> str:
    """What the container `name` is called on the destination; raises UsageError where that is settled otherwise."""
    wanted = new_name(args)
    if migration is None:
        return wanted or name
    known = migration.other_name
    if wanted and wanted != known:
        raise UsageError(reason=f"migration {migration.id} has begun to bring {name} there as {known}")
    return known


def origin(journal: Journal, name: str, lxcpath: Path) -> str:
    """The origin of a container on this host; "" when it has never moved."""
    came = journal.latest(name, lxcpath, Role.DESTINATION)
    return _origin(came) if came and came.state in (State.RESTORED, State.FINISHED) else ""


def _origin(migration: Migration) -> str:
    return str(migration.detail.get("origin") or migration.id)


def is_own_copy(journal: Journal, layout: Layout, origin: str, *, renamed: bool) -> bool:
    """Whether what `layout` names here is the container that comes, or the fenced copy of its earlier stay.

    Under the same name every fenced copy counts as that. Under a new one it could be another container's.
    """
    config = layout.container / "config"
    fence = container_config.fence_of(config.read_text(errors="replace")) if config.is_file() else ""
    if not fence or not renamed or fence == layout.id:
        return bool(fence)
    went = journal.by_id(fence, Role.SOURCE)
    return went is not None and bool(origin) and _origin(went) == origin


def is_of(journal: Journal, snapshot: Path, origin: str) -> bool:
    """Whether a snapshot that migrations keep was made or received by one of the container with that origin."""
    id_ = snapshot.name.partition(".")[0]
    found = [journal.by_id(id_, role) for role in (Role.SOURCE, Role.DESTINATION)]
    return any(each and _origin(each) == origin for each in found)


def refuse_foreign(journal: Journal, layout: Layout, origin: str, *, renamed: bool) -> None:
    """A container of that name may be here only as the stopped, fenced copy of one that has moved away."""
    if layout.container.exists() and not is_own_copy(journal, layout, origin, renamed=renamed):
        raise ContainerExists(host_name=this_host(), name=layout.name, lxcpath=layout.lxcpath)
