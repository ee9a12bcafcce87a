# SPDX-License-Identifier: GPL-2.0-or-later
"""Receiving a snapshot: anything else that its stream creates is removed again, and the stream refused.

Someone who crafts a stream can make `btrfs receive` create any subvolume, directory or file beside the one that was
announced, within the directory that it is confined to: it follows symlinks made by the stream (process_mkdir in
btrfs-progs' cmds/receive.c). The stream can also rename what is there (process_rename) and give its name to something
else, and change the mode of the directory itself (process_chmod). So what was there before is noted, with an identity
that no renaming changes, to be told apart from what was brought and to get its name back, even if receiving was killed;
and so are the directory's own mode, owner and attributes, which what is made in there next may inherit.

A `btrfs receive` outlives a killed program that was feeding it, until it has worked off what is in its pipe. It opens
everything by path, so it would write into what is received next under the same name: so it is ended first.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from migrator.base import log, removal
from migrator.base.run import Program
from migrator.config import container_config
from migrator.errors import Interrupted, MigratorError
from migrator.errors.data import ReceiveFailed
from migrator.host import btrfs, subvolume_uuids
from migrator.host.processes import running
from migrator.transfer import room_bounds, send_stream

# In the spool, while a stream is received: what was beside the snapshot before, and the snapshot's name.
NOTE = "beside.json"
END_LIMIT = 60.0  # seconds that a killed `btrfs receive` may take to finish the write that it is in, on a slow disk
_SHOWN = 3
_undoing = threading.Lock()


def receive(stream: Iterable[bytes | memoryview], target: Path, spool: Path, *,
            limit: float = btrfs.STREAM_LIMIT, leave: int = 0,
            begun: Callable[[Program], None] = lambda _: None) -> None:
    """Feed a stream to `btrfs receive`, which makes the snapshot `target` from it, within `limit` seconds.

    `begun` is passed that program, for another thread that may have to end it.

    `leave` bytes must stay free; each byte that it writes may cost a block. Raises ReceiveFailed, also if the stream
    creates anything else or an earlier receive does not end; CommandTimeout; or NoSpace. The caller removes an
    incomplete `target`.
    """
    end = time.monotonic() + limit
    make_way(target, spool, min(limit, END_LIMIT))
    before = {name: _mark(target.parent / name, target.parent) for name in _names(target.parent)}
    # Synced: btrfs commits what is received by itself, but of a file written before that perhaps only the name.
    noted = {"before": before, "target": target.name, "folder": _own(target.parent) if target.parent.is_dir() else None}
    container_config.write_file(spool / NOTE, json.dumps(noted), mode=0o600)
    may_name = functools.cache(functools.partial(subvolume_uuids.are_all_in, target.parent))
    try:
        btrfs.receive(room_bounds.leaving(leave, send_stream.plain(stream, target, may_name), target), target.parent,
                      limit=max(0.0, end - time.monotonic()), begun=begun)
    finally:
        brought = _take_away(target.parent, spool)
    if brought:
        shown = ", ".join(map(repr, sorted(brought)[:_SHOWN]))
        raise ReceiveFailed(path=target, reason=f"its stream brings more than that: {shown}")


def make_way(target: Path, spool: Path, limit: float = END_LIMIT) -> None:
    """Remove what a killed receive has left, and anything in the place of its snapshot.

    Call with the container locked. Raises ReceiveFailed if that receive does not end within `limit` seconds, OSError
    and SnapshotFailed.
    """
    if left := _end_left(target.parent, spool, limit):
        raise ReceiveFailed(path=target, reason=f"an earlier `btrfs receive` does not end (process {left[0]})")
    _take_away(target.parent, spool)
    if os.path.lexists(target):
        remove(target)


def clear(folder: Path, spool: Path, *, but: Callable[[str], bool] = lambda _: False) -> list[str]:
    """Undo what the last receive did in `folder` beside its snapshot; returns the names affected.

    If it was killed, what it left running is ended. What has come there since, as `but` tells by its name, is not
    removed. Call with the container locked.
    """
    if left := _end_left(folder, spool, END_LIMIT):
        log.warning(f"A `btrfs receive` that was killed does not end: process {left[0]}")
    return _take_away(folder, spool, but)


def _end_left(folder: Path, spool: Path, limit: float) -> list[int]:
    """End receives into `folder` left by a killed program; returns the pids of those that outlive `limit` seconds."""
    if not (spool / NOTE).exists():  # the last one came to its end
        return []
    end = time.monotonic() + limit
    while found := processes(folder):
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > end:
            break
        time.sleep(0.01)
    return found


def processes(folder: Path) -> list[int]:
    """The pids of root's own programs that receive into this directory."""
    # See `no_devices` for why it is in another mount namespace, and -C for its root.
    found = running("btrfs", root=folder)
    return [pid for pid, words in found if {b"receive", os.fsencode(folder)} <= set(words)]


def _take_away(folder: Path, spool: Path, but: Callable[[str], bool] = lambda _: False) -> list[str]:
    with _undoing:  # a late thread would take for brought what this one is giving back
        return _take_away_alone(folder, spool, but)


def _take_away_alone(folder: Path, spool: Path, but: Callable[[str], bool]) -> list[str]:
    try:
        noted = json.loads((spool / NOTE).read_text())
        # An older version noted only the names.
        before = dict(noted["before"] if isinstance(noted["before"], dict) else dict.fromkeys(noted["before"], ""))
        target, own = noted["target"], noted.get("folder")  # an older version did not note these
    except (OSError, ValueError, TypeError, KeyError):
        return []
    taken, kept = _give_back(folder, before)
    brought = [name for name in _names(folder) if not (name in before and _is(folder / name, folder, before[name]))
               and not (name == target and btrfs.is_subvolume(folder / name)) and not but(name)]
    for name in brought:
        log.warning(f"{name!r} came with a stream that has no business bringing it: removing it from {folder}")
        if name in kept:
            log.warning(f"{folder / name} stays: something that was there before is in it")
            continue
        try:
            remove(folder / name)
        except Interrupted:
            raise
        except Exception as error:  # a rollback goes on, whatever it is called and however deep it is
            log.warning(f"{folder / name} could not be removed: {error}")
    if changed := bool(own) and folder.is_dir() and _own(folder) != own:
        log.warning(f"A stream that has no business doing so had changed the owner, mode or attributes of {folder}")
        _restore(folder, own)
    (spool / NOTE).unlink()
    return [*brought, *taken, *(["."] if changed else [])]


def _own(folder: Path) -> dict[str, Any]:
    """The directory's owner, mode and extended attributes, including ACLs."""
    found = folder.stat()
    return {"owner": [found.st_uid, found.st_gid], "mode": stat.S_IMODE(found.st_mode),
            "attributes": {name: os.getxattr(folder, name).hex() for name in sorted(os.listxattr(folder))}}


def _restore(folder: Path, own: dict[str, Any]) -> None:
    """Restore them; the mode last, because an owner and an ACL change it."""
    now = _own(folder)
    steps = [functools.partial(os.chown, folder, *own["owner"])] if now["owner"] != own["owner"] else []
    for name in sorted({*now["attributes"], *own["attributes"]}):
        before = own["attributes"].get(name)
        if before is None:
            steps.append(functools.partial(os.removexattr, folder, name))
        elif before != now["attributes"].get(name):
            steps.append(functools.partial(os.setxattr, folder, name, bytes.fromhex(before)))
    for step in [*steps, functools.partial(folder.chmod, own["mode"])]:
        try:
            step()
        except OSError as error:
            log.warning(f"{folder} could not be restored to what it was: {error}")


def _give_back(folder: Path, before: dict[str, str]) -> tuple[list[str], set[str]]:
    """Give what was there before its name back.

    Returns the names that were removed, and what in `folder` still holds something that could not be brought back.
    """
    lost = {mark: name for name, mark in before.items() if not _is(folder / name, folder, mark)}
    if not lost:
        return [], set()
    kept: set[str] = set()
    back: dict[str, Path] = {}
    for path, mark in list(_look_for(folder, set(lost))):
        aside = folder / f"{lost[mark]}.{secrets.token_hex(8)}"  # until everything that has swapped places is found
        try:
            _make_room(path, folder)
            path.rename(aside)
            back[mark] = aside
        except (OSError, MigratorError) as error:
            kept.add(path.relative_to(folder).parts[0])
            log.warning(f"{path}, which was {folder / lost[mark]}, could not be put back: {error}")
    for mark, name in lost.items():
        if mark in back:
            if os.path.lexists(folder / name):  # it is not what was there before, as that has been put aside by now
                (folder / name).rename(folder / f"{name}.{secrets.token_hex(8)}")
            back[mark].rename(folder / name)
            log.warning(f"A stream that has no business doing so had renamed {folder / name}: it has been put back")
        else:
            log.warning(f"{folder / name} has been missing since a stream was received there")
    return list(lost.values()), kept


def _look_for(folder: Path, marks: set[str]) -> Iterator[tuple[Path, str]]:
    """Where they are now, each once; does not search what is mounted there."""
    left = [folder]
    while left and marks:
        here = left.pop()
        with contextlib.suppress(OSError):  # too deep for a path: what a stream cannot name, it has not moved there
            for path in here.iterdir():
                mark = _mark(path, folder)
                if mark in marks:
                    marks.discard(mark)
                    yield path, mark
                elif path.is_dir() and not path.is_symlink() and not removal.is_mounted(path):
                    left.append(path)


def _make_room(path: Path, folder: Path) -> None:
    """Make sure that something that was moved into a snapshot, which is read-only by now, can be taken out again."""
    for parent in path.parents:
        if parent == folder:
            return
        if btrfs.is_subvolume(parent):
            btrfs.make_writable(parent)
            return


def _mark(path: Path, folder: Path) -> str:
    """An identity that nothing else has, under any name: a subvolume's uuid, else the inode in the subvolume of
    `folder`.

    "-" if nothing is there; "" if that cannot be determined, as for a mount point, which is identified by its name.
    """
    try:
        if not path.is_symlink() and btrfs.is_subvolume(path):
            return btrfs.info(path).uuid
        found = path.lstat()
        return str(found.st_ino) if found.st_dev == folder.stat().st_dev else ""
    except FileNotFoundError:
        return "-"
    except Interrupted:
        raise
    except Exception as error:  # a library's own: what cannot be determined is left alone
        log.debug(f"{path} cannot be told from others: {error}")
        return ""


def _is(path: Path, folder: Path, mark: str) -> bool:
    """Whether that is what had this mark, as far as can be told."""
    return not mark or _mark(path, folder) in ("", mark)


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def remove(path: Path) -> None:
    """Remove whatever it is, including subvolumes in it, but nothing that is mounted there.

    Raises OSError, SnapshotFailed.
    """
    if path.is_symlink() or not path.is_dir() or removal.is_mounted(path):
        removal.tree(path)
    elif btrfs.is_subvolume(path):
        btrfs.delete(path, inner=True)
    else:
        for inner in path.iterdir():
            if inner.is_dir() and not inner.is_symlink():
                remove(inner)
        removal.tree(path)
