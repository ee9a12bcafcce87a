# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a copy that was left behind has been written to since: by the transaction of btrfs that changed it last."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from migrator.copies import origins
from migrator.errors import MigratorError
from migrator.host import btrfs, lxc
from migrator.record.journal import Journal


def changed(rootfs: Path) -> int:
    """By which transaction a root file system was last written to; 0 where that cannot be told.

    What is on its way to the disk is not counted yet: it is waited for.
    """
    try:
        btrfs.sync(rootfs)
        return btrfs.info(rootfs).changed
    except (MigratorError, OSError):
        return 0


def was_written_to(journal: Journal, config: Path, rootfs: Path) -> bool:
    """Whether somebody has written to the copy behind the fence in `config` since its container had left here for good.

    Started past its fence, or from another container that has a folder of it: what he wrote is nowhere else. A file
    that is only read counts too, where the file system keeps the time of that (relatime), see `only_read`; and what
    cannot be told. Older versions did not record when that was.
    """
    went = origins.left_by(journal, config)
    left = went.copy.changed if went else None
    return bool(left) and btrfs.is_subvolume(rootfs) and changed(rootfs) != left


@contextlib.contextmanager
def only_read(journal: Journal, config: Path, rootfs: Path) -> Iterator[None]:
    """What is read meanwhile of the copy behind the fence in `config` is no write to it, if it was as it had been left.

    Ask with the container locked. What somebody else writes in the same time is not told from that, unless he is still
    there at the end.
    """
    went = origins.left_by(journal, config) if config.is_file() else None
    left = went.copy.changed if went else None
    counts = bool(left) and changed(rootfs) == left
    try:
        yield
    finally:
        if went and counts and not lxc.lives_in(config.parent.name, rootfs):
            with contextlib.suppress(MigratorError, OSError):  # else it counts as written to, and is kept
                if (found := changed(rootfs)) not in (0, left):
                    went.note("read", changed=found)
