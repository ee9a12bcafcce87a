# SPDX-License-Identifier: GPL-2.0-or-later
"""Copies of what a configuration includes and this host lacks, in the container's folder, by migration.

A clone that somebody has made of the container (lxc-copy) includes them from there: LXC would not start it without.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from migrator import config_reader, log, removal

FOLDER = "migrator-include"  # in the container's folder


def drop(folder: Path, keep: str = "", drop: str = "") -> None:
    """Remove copies from a container's folder: of the migration `drop`, or of all but `keep`."""
    _drop(folder, lambda id_: id_ == drop or bool(keep and id_ != keep))


def drop_all(folder: Path) -> None:
    _drop(folder, lambda _: True)


def _drop(folder: Path, goes: Callable[[str], bool]) -> None:
    """But none that another container includes, which is told."""
    used = used_by_others(folder)
    for path in (folder / FOLDER).glob("[0-9a-f]" * 8):
        if goes(path.name) and path.name in used:
            log.warning(f"{path} stays, as {used[path.name]} includes it")
        elif goes(path.name):
            removal.tree(path)
    with contextlib.suppress(OSError):
        (folder / FOLDER).rmdir()


def used_by_others(folder: Path) -> dict[str, Path]:
    """By migration, those that another container of the same LXC path includes, and its configuration."""
    place, used = os.path.realpath(folder / FOLDER), dict[str, Path]()
    for config in sorted(folder.parent.glob("*/config")) if Path(place).is_dir() else []:
        with contextlib.suppress(OSError):
            for value in config_reader.included(config.read_bytes().decode(errors="surrogateescape")):
                included = Path(os.path.realpath(value))
                if config.parent.name != folder.name and included.is_relative_to(place) and included != Path(place):
                    used[included.relative_to(place).parts[0]] = config
    return used
