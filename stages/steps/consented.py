# SPDX-License-Identifier: GPL-2.0-or-later
"""What was defined here with its sender's consent, where that may have been taken back since (docs/tunnel.md)."""

from __future__ import annotations

from migrator.base import log
from migrator.config import config_reader, consent, container_config
from migrator.copies import origins
from migrator.criu import restore
from migrator.record import grant
from migrator.record.journal import Migration
from migrator.record.migration_paths import Layout


def require(migration: Migration) -> None:
    """Raises ConsentNeeded for what may not be handed over any more.

    ContainerNotFound and ContainerExists where that would have to be looked at, and is not there any more.
    """
    allowed = grant.of_migration(migration)
    if not allowed.hooks:
        allowed.check_reaching(migration.name, _reaching(migration))


def _reaching(migration: Migration) -> str:
    """What reaches out of what was defined. A version that did not record it has left the configuration itself.

    There a copy of a file that came along reaches out, too, whatever is in it: that took consent.
    """
    if migration.consent.reaching is not None:
        return migration.consent.reaching
    layout = Layout(migration.lxcpath, migration.name, migration.id)
    origins.require_ours(layout)
    text = container_config.unfenced(container_config.text_of(layout.container / "config"))
    return grant.reaching(text, migration.begun.mapped_root)


def confine(migration: Migration) -> bool:
    """Before it is started from its disk: what `restore.prepare` adds to its configuration. Whether anything was.

    Raises ConfigInvalid where that is not fenced by this migration.
    """
    if grant.of_migration(migration).hooks:
        return False
    config = Layout(migration.lxcpath, migration.name, migration.id).container / "config"
    text = container_config.text_of(config)
    added = consent.confining(config_reader.read(str(config), text).certain(text))
    if added:
        log.warning(f"{migration.name}: {restore.CONFINED}")
        container_config.add(config.parent, added, migration.id)
    return bool(added)
