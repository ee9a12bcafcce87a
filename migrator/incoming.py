# SPDX-License-Identifier: GPL-2.0-or-later
"""A snapshot that is received: what else its stream brings is taken away again, and it is refused.

Who makes a stream by hand can have `btrfs receive` make any subvolume, folder or file beside the one that was
announced, in the folder that it is confined to: it joins paths as they come, `..` too (process_subvol and process_mkdir
in btrfs-progs' cmds/receive.c). What was there before is written down, so that this is told from what belongs to
others, also after the receive was killed.

A `btrfs receive` outlives the program that was killed while it fed it, until it has worked off what is in its pipe. It
opens everything by its path, so it would write into what is received next under the same name: it is ended before.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

from migrator import btrfs, log, removal
from migrator.errors import ReceiveFailed
from migrator.processes import running

NOTE = "beside.json"  # in the spool, while a stream is received: what lay beside the snapshot before, and its name
END_LIMIT = 60.0  # seconds that a killed `btrfs receive` may take: it ends the write that it is in, on a slow disk
_SHOWN = 3


def receive(stream: Iterable[bytes | memoryview], target: Path, spool: Path) -> None:
    """Feed a stream to `btrfs receive`, which makes the snapshot `target` of it.

    Raises ReceiveFailed also where it brings anything else, or an earlier one does not end. The caller removes a
    `target` that is not whole.
    """
    if left := _end_left(target.parent, spool):
        raise ReceiveFailed(path=target, reason=f"an earlier `btrfs receive` does not end (process {left[0]})")
    _take_away(target.parent, spool)
    if os.path.lexists(target):
        remove(target)  # what a receive that was killed has left
    # Not synced: should a power cut take the note, it also takes what was received later.
    (spool / NOTE).write_text(json.dumps({"before": _names(target.parent), "target": target.name}))
    try:
        btrfs.receive(stream, target.parent)
    finally:
        brought = _take_away(target.parent, spool)
    if brought:
        shown = ", ".join(map(repr, sorted(brought)[:_SHOWN]))
        raise ReceiveFailed(path=target, reason=f"its stream brings more than that: {shown}")


def clear(folder: Path, spool: Path) -> list[str]:
    """Remove what the last receive has brought into `folder` that is not its snapshot; returns the names.

    Where it was killed, what it has left at work is ended. Ask with the container locked.
    """
    if left := _end_left(folder, spool):
        log.warning(f"A `btrfs receive` that was killed does not end: process {left[0]}")
    return _take_away(folder, spool)


def _end_left(folder: Path, spool: Path) -> list[int]:
    """End the receives into `folder` that a killed program has left; the ids of those that do not."""
    if not (spool / NOTE).exists():  # the last one came to its end
        return []
    limit = time.monotonic() + END_LIMIT
    while found := processes(folder):
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > limit:
            break
        time.sleep(0.01)
    return found


def processes(folder: Path) -> list[int]:
    """The ids of root's own programs that receive into this folder."""
    return [pid for pid, words in running("btrfs") if {b"receive", os.fsencode(folder)} <= set(words)]


def _take_away(folder: Path, spool: Path) -> list[str]:
    try:
        noted = json.loads((spool / NOTE).read_text())
        before, target = set(noted["before"]), noted["target"]
    except (OSError, ValueError, TypeError, KeyError):
        return []
    brought = [name for name in _names(folder) if name not in before
               and not (name == target and btrfs.is_subvolume(folder / name))]
    for name in brought:
        log.warning(f"{name!r} came with a stream that has no business to bring it: it is removed from {folder}")
        try:
            remove(folder / name)
        except Exception as error:  # whatever it is called, and however deep it is, a rollback goes on
            log.warning(f"{folder / name} could not be removed: {error}")
    (spool / NOTE).unlink()
    return brought


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def remove(path: Path) -> None:
    """Remove whatever it is, with the subvolumes in it, but nothing that is mounted there.

    Raises OSError, SnapshotFailed.
    """
    if path.is_symlink() or not path.is_dir() or removal.is_mounted(path):
        removal.tree(path)
    elif btrfs.is_subvolume(path):
        btrfs.delete(path)
    else:
        for inner in path.iterdir():
            if inner.is_dir() and not inner.is_symlink():
                remove(inner)
        removal.tree(path)
