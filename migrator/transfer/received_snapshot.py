# SPDX-License-Identifier: GPL-2.0-or-later
"""A snapshot that is received: what else its stream brings is taken away again, and it is refused.

Who makes a stream by hand can have `btrfs receive` make any subvolume, folder or file beside the one that was
announced, in the folder that it is confined to: it follows the links that the stream has made (process_mkdir in
btrfs-progs' cmds/receive.c). It can also rename what lies there (process_rename), and give its name to something else,
and change the mode of the folder itself (process_chmod). So what was there before is written down by what no name
changes, to be told from what was brought, and to be given its name back, also after the receive was killed; and the
folder's own mode, owner and attributes, which what is made in there next may inherit.

A `btrfs receive` outlives the program that was killed while it fed it, until it has worked off what is in its pipe. It
opens everything by its path, so it would write into what is received next under the same name: it is ended before.
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

NOTE = "beside.json"  # in the spool, while a stream is received: what lay beside the snapshot before, and its name
END_LIMIT = 60.0  # seconds that a killed `btrfs receive` may take: it ends the write that it is in, on a slow disk
_SHOWN = 3
_undoing = threading.Lock()


def receive(stream: Iterable[bytes | memoryview], target: Path, spool: Path, *,
            limit: float = btrfs.STREAM_LIMIT, leave: int = 0,
            begun: Callable[[Program], None] = lambda _: None) -> None:
    """Feed a stream to `btrfs receive`, which makes the snapshot `target` of it, in `limit` seconds for all of it.

    `begun` is told which program that is, for another thread that may have to end it.

    `leave` bytes stay free: each byte that it writes may cost a block. Raises ReceiveFailed also where it brings
    anything else, or an earlier one does not end, CommandTimeout, or NoSpace. The caller removes a `target` that is
    not whole.
    """
    end = time.monotonic() + limit
    make_way(target, spool, min(limit, END_LIMIT))
    before = {name: _mark(target.parent / name, target.parent) for name in _names(target.parent)}
    # Synced: btrfs commits what is received by itself, and of a file that was written before perhaps the name alone.
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
    """What a receive that was killed has left goes, and all that lies in the place of its snapshot.

    Ask with the container locked. Raises ReceiveFailed where that one does not end in `limit` seconds, OSError and
    SnapshotFailed.
    """
    if left := _end_left(target.parent, spool, limit):
        raise ReceiveFailed(path=target, reason=f"an earlier `btrfs receive` does not end (process {left[0]})")
    _take_away(target.parent, spool)
    if os.path.lexists(target):
        remove(target)


def clear(folder: Path, spool: Path, *, but: Callable[[str], bool] = lambda _: False) -> list[str]:
    """Undo what the last receive has done in `folder` beside its snapshot; returns the names that it was done to.

    Where it was killed, what it has left at work is ended. What has come there since, as `but` tells by its name, is
    not taken away. Ask with the container locked.
    """
    if left := _end_left(folder, spool, END_LIMIT):
        log.warning(f"A `btrfs receive` that was killed does not end: process {left[0]}")
    return _take_away(folder, spool, but)


def _end_left(folder: Path, spool: Path, limit: float) -> list[int]:
    """End the receives into `folder` that a killed program has left; the ids of those that do not, in `limit` seconds.
    """
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
    """The ids of root's own programs that receive into this folder."""
    found = running("btrfs", root=folder)  # see `no_devices` for why it is in another mount namespace, -C for its root
    return [pid for pid, words in found if {b"receive", os.fsencode(folder)} <= set(words)]


def _take_away(folder: Path, spool: Path, but: Callable[[str], bool] = lambda _: False) -> list[str]:
    with _undoing:  # a thread may come to it late, and would take for brought what this one is giving back
        return _take_away_alone(folder, spool, but)


def _take_away_alone(folder: Path, spool: Path, but: Callable[[str], bool]) -> list[str]:
    try:
        noted = json.loads((spool / NOTE).read_text())
        # An older version has written down the names alone.
        before = dict(noted["before"] if isinstance(noted["before"], dict) else dict.fromkeys(noted["before"], ""))
        target, own = noted["target"], noted.get("folder")  # which an older version has not written down
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
        except Exception as error:  # whatever it is called, and however deep it is, a rollback goes on
            log.warning(f"{folder / name} could not be removed: {error}")
    if changed := bool(own) and folder.is_dir() and _own(folder) != own:
        log.warning(f"A stream that has no business doing so had changed the owner, mode or attributes of {folder}")
        _restore(folder, own)
    (spool / NOTE).unlink()
    return [*brought, *taken, *(["."] if changed else [])]


def _own(folder: Path) -> dict[str, Any]:
    """The folder's owner, mode and extended attributes, its ACLs too."""
    found = folder.stat()
    return {"owner": [found.st_uid, found.st_gid], "mode": stat.S_IMODE(found.st_mode),
            "attributes": {name: os.getxattr(folder, name).hex() for name in sorted(os.listxattr(folder))}}


def _restore(folder: Path, own: dict[str, Any]) -> None:
    """Give them back; the mode last, as an owner and an ACL change it."""
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

    Returns the names that were taken away, and what in `folder` still holds something that could not be brought back.
    """
    lost = {mark: name for name, mark in before.items() if not _is(folder / name, folder, mark)}
    if not lost:
        return [], set()
    kept: set[str] = set()
    back: dict[str, Path] = {}
    for path, mark in list(_look_for(folder, set(lost))):
        aside = folder / f"{lost[mark]}.{secrets.token_hex(8)}"  # until all that has changed places is there
        try:
            _make_room(path, folder)
            path.rename(aside)
            back[mark] = aside
        except (OSError, MigratorError) as error:
            kept.add(path.relative_to(folder).parts[0])
            log.warning(f"{path}, which was {folder / lost[mark]}, could not be put back: {error}")
    for mark, name in lost.items():
        if mark in back:
            if os.path.lexists(folder / name):  # it is not what was there before: that has been put aside by now
                (folder / name).rename(folder / f"{name}.{secrets.token_hex(8)}")
            back[mark].rename(folder / name)
            log.warning(f"A stream that has no business doing so had renamed {folder / name}: it has been put back")
        else:
            log.warning(f"{folder / name} has been missing since a stream was received there")
    return list(lost.values()), kept


def _look_for(folder: Path, marks: set[str]) -> Iterator[tuple[Path, str]]:
    """Where they are now, each once; nothing is searched that is mounted there."""
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
    """What was moved into a snapshot, which is read-only by now, can be taken out of it again."""
    for parent in path.parents:
        if parent == folder:
            return
        if btrfs.is_subvolume(parent):
            btrfs.make_writable(parent)
            return


def _mark(path: Path, folder: Path) -> str:
    """What no other one has, whatever it is called: a subvolume's uuid, else the inode in the subvolume of `folder`.

    "-" where there is nothing, and "" where that cannot be told, as of what is mounted there: it goes by its name.
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
    except Exception as error:  # a library's own: what cannot be told is left alone
        log.debug(f"{path} cannot be told from others: {error}")
        return ""


def _is(path: Path, folder: Path, mark: str) -> bool:
    """Whether that is what had this mark, as far as can be told."""
    return not mark or _mark(path, folder) in ("", mark)


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def remove(path: Path) -> None:
    """Remove whatever it is, with the subvolumes in it, but nothing that is mounted there.

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
