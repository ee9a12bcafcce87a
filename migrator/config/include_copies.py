# SPDX-License-Identifier: GPL-2.0-or-later
"""Copies of files that a configuration includes and this host lacks, in the container's directory, by migration.

A clone that someone has made of the container (lxc-copy) includes them from there: without them LXC would not start it.
"""

from __future__ import annotations

import contextlib
import posixpath
import re
from pathlib import Path

from migrator.base import log, removal
from migrator.config import config_reader

FOLDER = "migrator-include"  # in the container's directory

_ID = "[0-9a-f]{8}"


def drop(folder: Path, migration: str) -> None:
    """Remove from a container's directory those of one migration, which is given up.

    Other containers are not checked for including them: a configuration on a share that does not answer would keep the
    source waiting, with its container frozen.
    """
    removal.tree(folder / FOLDER / migration)
    _remove_empty(folder)


def drop_unused(folder: Path, keep: str = "") -> None:
    """Remove those of all migrations but `keep`; but none that another container includes, which is logged."""
    used = tell_used(folder, keep)
    for id_ in sorted(set(_names(folder)) - used - {keep}):
        if re.fullmatch(_ID, id_):
            removal.tree(folder / FOLDER / id_)
    _remove_empty(folder)


def tell_used(folder: Path, keep: str = "") -> set[str]:
    """Warn of those that stay because another container includes them, except those of `keep`. Returns them."""
    used = used_by_others(folder)
    for id_ in sorted(set(_names(folder)) & set(used) - {keep}):
        log.warning(f"{folder / FOLDER / id_} stays, as {used[id_]} includes it")
    return set(used)


def are_strange(folder: Path, given_up: str = "") -> bool:
    """Whether there is more than may be removed: something that others have put or mounted there, or include.

    For a migration that is `given_up`: anything that is not of that one. Then, too, other containers are not checked.
    """
    if removal.is_mounted(folder / FOLDER):
        return True
    found = _names(folder)
    if given_up:
        return any(name != given_up for name in found)
    return not all(re.fullmatch(_ID, name) for name in found) or bool(used_by_others(folder))


def used_by_others(folder: Path) -> dict[str, Path]:
    """By migration, those included by another container of the same LXC path, or by a snapshot, with its configuration.

    Recognised by the container's name and the id in the text of the inclusion, which no other spelling of the LXC path
    changes: the file itself is not looked at, because it may be on a share that does not answer.
    """
    used = dict[str, Path]()
    for config in _configurations(folder) if _names(folder) else []:
        with contextlib.suppress(OSError):
            for value in config_reader.included(config_reader.read_file(str(config))):
                if found := re.search(rf"/{re.escape(folder.name)}/{FOLDER}/({_ID})(/|$)", posixpath.normpath(value)):
                    used[found[1]] = config
    return used


def _configurations(folder: Path) -> list[Path]:
    """Those of the other containers, and of all snapshots that LXC has made (lxc-snapshot), even this container's."""
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
