# SPDX-License-Identifier: GPL-2.0-or-later
"""A snapshot that is received: what else its stream brings is taken away again, and it is refused.

Who makes a stream by hand can have `btrfs receive` make any subvolume, folder or file beside the one that was announced
(btrfs-receive(8)), in the folder that it is confined to. What was there before is written down, so that this is told
from what belongs to others, also after the receive was killed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from migrator import btrfs, log
from migrator.errors import MigratorError, ReceiveFailed

NOTE = "beside.json"  # in the spool, while a stream is received: the names that may lie beside the snapshot
_SHOWN = 3


def receive(stream: Iterable[bytes | memoryview], target: Path, spool: Path) -> None:
    """Feed a stream to `btrfs receive`, which makes the snapshot `target` of it.

    Raises ReceiveFailed also where it brings anything else. The caller removes a `target` that is not whole.
    """
    clear(target.parent, spool)
    btrfs.delete(target)  # what a receive that was killed has left
    # Not synced: should a power cut take the note, it also takes what was received later.
    (spool / NOTE).write_text(json.dumps([*os.listdir(target.parent), target.name]))
    try:
        btrfs.receive(stream, target.parent)
    finally:
        brought = clear(target.parent, spool)
    if brought:
        shown = ", ".join(map(repr, sorted(brought)[:_SHOWN]))
        raise ReceiveFailed(path=target, reason=f"its stream brings more than that: {shown}")


def clear(folder: Path, spool: Path) -> list[str]:
    """Remove what the last receive has brought into `folder` beside its snapshot; returns the names."""
    try:
        noted = set(json.loads((spool / NOTE).read_text()))
    except (OSError, ValueError, TypeError):
        return []
    brought = [name for name in os.listdir(folder) if name not in noted] if folder.is_dir() else []
    for name in brought:
        log.warning(f"{name!r} came with a stream that has no business to bring it: it is removed from {folder}")
        _remove(folder / name)
    (spool / NOTE).unlink()
    return brought


def _remove(path: Path) -> None:
    """Whatever it is, subvolumes in it too."""
    try:
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        elif btrfs.is_subvolume(path):
            btrfs.delete(path)
        else:
            for inner in path.iterdir():
                if inner.is_dir() and not inner.is_symlink():
                    _remove(inner)
            shutil.rmtree(path)
    except (MigratorError, OSError, RecursionError) as error:
        log.warning(f"{path} could not be removed: {error}")
