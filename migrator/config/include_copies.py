# SPDX-License-Identifier: GPL-2.0-or-later
"""Copies of what a configuration includes and this host lacks, in the container's folder, by migration.

A clone that somebody has made of the container (lxc-copy) includes them from there: LXC would not start it without.
"""

from __future__ import annotations

import contextlib
import posixpath
import re
from pathlib import Path

from migrator.base import log, removal
from migrator.config import config_reader

FOLDER = "migrator-include"  # in the container's folder

_ID = "[0-9a-f]{8}"


def drop(folder: Path, migration: str) -> None:
    """Remove from a container's folder those of one migration, which is given up.

    Nobody is asked whether he includes them: a configuration on a share that does not answer would keep the source
    waiting, with its container frozen.
    """
    removal.tree(folder / FOLDER / migration)
    _remove_empty(folder)


def drop_unused(folder: Path, keep: str = "") -> None:
    """Remove those of all migrations but `keep`; but none that another container includes, which is told."""
    used = tell_used(folder, keep)
    for id_ in sorted(set(_names(folder)) - used - {keep}):
        if re.fullmatch(_ID, id_):
            removal.tree(folder / FOLDER / id_)
    _remove_empty(folder)


def tell_used(folder: Path, keep: str = "") -> set[str]:
    """Warn of those that stay, as another container includes them; of `keep` nobody needs to know. Returns them."""
    used = used_by_others(folder)
    for id_ in sorted(set(_names(folder)) & set(used) - {keep}):
        log.warning(f"{folder / FOLDER / id_} stays, as {used[id_]} includes it")
    return set(used)


def are_strange(folder: Path, given_up: str = "") -> bool:
    """Whether there is more than may be removed: what somebody has put or mounted there, or what another includes.

    Where a migration is `given_up`: anything that is not of that one. Then, too, nobody is asked what he includes.
    """
    if removal.is_mounted(folder / FOLDER):
        return True
    found = _names(folder)
    if given_up:
        return any(name != given_up for name in found)
    return not all(re.fullmatch(_ID, name) for name in found) or bool(used_by_others(folder))


def used_by_others(folder: Path) -> dict[str, Path]:
    """By migration, those that another container of the same LXC path includes, or a snapshot, and its configuration.

    Told by the container's name and the id in what they say, which no other spelling of the LXC path changes: what lies
    there is not looked at, as it may be on a share that does not answer.
    """
    used = dict[str, Path]()
    for config in _configurations(folder) if _names(folder) else []:
        with contextlib.suppress(OSError):
            for value in config_reader.included(config_reader.read_file(str(config))):
                if found := re.search(rf"/{re.escape(folder.name)}/{FOLDER}/({_ID})(/|$)", posixpath.normpath(value)):
                    used[found[1]] = config
    return used


def _configurations(folder: Path) -> list[Path]:
    """Of the other containers, and of all snapshots that LXC has made (lxc-snapshot), the container's own too."""
    found = list[Path]()
    for container in sorted(folder.parent.iterdir()):
        if container.name != folder.name:
            found.append(container / "config")
        with contextlib.suppress(OSError):
            found += sorted((container / "snaps").glob("*/config"))
    return found


def _names(folder: Path) -> list[str]:
    place = folder / FOLDER
    return [path.name for path in place.iterdir()] if place.is_dir() else []


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        (folder / FOLDER).rmdir()
