# SPDX-License-Identifier: GPL-2.0-or-later
"""The configuration of an arriving container: adapted to this host, and read here the way LXC will read it."""

from __future__ import annotations

from pathlib import Path

from migrator.config import consent, container_config, include_copies
from migrator.config.container_config import Carried
from migrator.record.journal import Migration
from migrator.record.migration_paths import Layout


def adopted(migration: Migration, layout: Layout, carried: Carried, bridges: dict[str, str], *,
            trusted: bool) -> tuple[str, dict[Path, str]]:
    """See `container_config.adopted`. Raises ConfigInvalid if it cannot be determined what LXC will read."""
    # What is in there belongs to the container itself.
    own = f"{migration.begun.source_lxcpath}/{migration.other_name}/"

    # From an untrusted sender nothing comes along, wherever it claims that its own files are.
    def there(path: str) -> bool:
        return not trusted or (path.startswith("/") and not path.startswith(own) and Path(path).exists())

    config, added = layout.container / "config", list[str]()
    if not trusted:
        added = consent.confining(container_config.whole(migration.name, config, carried.text).settings)
    text, copies = container_config.adopted(
        carried, layout.container / include_copies.FOLDER / layout.id, there, rootfs=layout.rootfs,
        bridges=bridges, new_name="" if migration.other_name == migration.name else migration.name, added=added)
    container_config.whole(migration.name, config, text, copies)
    return text, copies


def write(layout: Layout, folder: Path, text: str, copies: dict[Path, str], message: str) -> None:
    """Write it into `folder`, the container's present or future directory; fenced, with `message` for who starts it."""
    for path, copy in copies.items():
        file = folder / Path(path).relative_to(layout.container)
        file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        container_config.write_file(file, copy)
    container_config.fence(folder, text, layout.id, message, place=layout.container)
