# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a copy that was left behind has been written to since: by the btrfs transaction that changed it last."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from migrator.copies import origins
from migrator.errors import MigratorError
from migrator.host import btrfs, lxc
from migrator.record.journal import Journal


def changed(rootfs: Path) -> int:
    """The transaction (generation) in which a root file system was last written to; 0 if that cannot be determined.

    Dirty data does not count until it is written out, so this syncs first.
    """
    try:
        btrfs.sync(rootfs)
        return btrfs.info(rootfs).changed
    except (MigratorError, OSError):
        return 0


def was_written_to(journal: Journal, config: Path, rootfs: Path) -> bool:
    """Whether someone has written to the copy behind the fence in `config` since its container left here for good.

    It may have been started past its fence, or be used by another container that mounts a directory of it; what was
    written then exists nowhere else. On a file system that records access times (relatime), merely reading a file
    counts too (see `only_read`), as does anything that cannot be determined. Older versions did not record when the
    container left.
    """
    went = origins.left_by(journal, config)
    left = went.copy.changed if went else None
    return bool(left) and btrfs.is_subvolume(rootfs) and changed(rootfs) != left


@contextlib.contextmanager
def only_read(journal: Journal, config: Path, rootfs: Path) -> Iterator[None]:
    """Do not count what is read meanwhile from the copy behind the fence in `config` as a write, if it was untouched.

    Call with the container locked. Writes by others at the same time cannot be told apart, unless their processes are
    still there at the end.
    """
    went = origins.left_by(journal, config) if config.is_file() else None
    left = went.copy.changed if went else None
    counts = bool(left) and changed(rootfs) == left
    try:
        yield
    finally:
        if went and counts and not lxc.lives_in(config.parent.name, rootfs):
            with contextlib.suppress(MigratorError, OSError):  # otherwise it counts as written to, and is kept
                if (found := changed(rootfs)) not in (0, left):
                    went.note("read", changed=found)
