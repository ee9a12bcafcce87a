# SPDX-License-Identifier: GPL-2.0-or-later
"""What was defined here with consent to its sender that may have been withdrawn since (docs/tunnel.md)."""

from __future__ import annotations

from migrator.base import log
from migrator.config import config_reader, consent, container_config
from migrator.copies import origins
from migrator.criu import restore
from migrator.record import grant
from migrator.record.journal import Migration
from migrator.record.migration_paths import Layout


def require(migration: Migration) -> None:
    """Raise ConsentNeeded for what may no longer be handed over.

    ContainerNotFound or ContainerExists if the container would have to be looked at for that and is no longer there.
    """
    allowed = grant.of_migration(migration)
    if not allowed.hooks:
        allowed.check_reaching(migration.name, _reaching(migration))


def _reaching(migration: Migration) -> str:
    """What reaches out of the container as it was defined.

    If the version did not record that, the configuration itself tells.

    In it, a copy of a file that came along counts as reaching out too, whatever it contains: bringing it took consent.
    """
    if migration.consent.reaching is not None:
        return migration.consent.reaching
    layout = Layout.of(migration)
    origins.require_ours(layout)
    text = container_config.unfenced(container_config.text_of(layout.container / "config"))
    return grant.reaching(text, migration.begun.mapped_root)


def confine(migration: Migration) -> bool:
    """Before a start from disk: add to its configuration what `restore.prepare` adds; returns whether anything was.

    Raises ConfigInvalid if the configuration is not fenced by this migration.
    """
    if grant.of_migration(migration).hooks:
        return False
    config = Layout.of(migration).container / "config"
    text = container_config.text_of(config)
    added = consent.confining(config_reader.read(str(config), text).certain(text))
    if added:
        log.warning(f"{migration.name}: {restore.CONFINED}")
        container_config.add(config.parent, added, migration.id)
    return bool(added)
