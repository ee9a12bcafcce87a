# SPDX-License-Identifier: GPL-2.0-or-later
"""At a dump: what was open although deleted, and where CRIU recreates it at a restore; see `ghost_paths`."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from migrator.base import bounded_read
from migrator.criu import at_restore, ghost_paths
from migrator.criu.ghost_paths import FILE, FOLDER
from migrator.criu.image_messages import (
    FILES,
    FILES_LIMIT,
    FILES_MAGIC,
    MOUNTS,
    MOUNTS_LIMIT,
    MOUNTS_MAGIC,
    REMAPS,
    REMAPS_MAGIC,
    number,
    once,
    records,
    signed,
    split,
    string,
)
from migrator.host import mount_tables
from migrator.host.mountinfo import parse_mountinfo

OLD_FILES = "reg-files.img"
REMAPS_LIMIT = 4 << 20  # bytes
_GHOST_HEAD = 64 << 10  # bytes of a ghost's image that include its file type; a symlink's target may come first
_GHOST_MAGIC = 0x52583605  # criu/include/magic.h
_LINKED, _GHOST, _PROCFS = 0, 1, 2  # images/remap-file-path.proto
_ORIGINAL, _OTHER, _TYPE = 1, 2, 3  # fields of remap_file_path_entry
_REGULAR = 3  # of file_entry
_ID, _NAME, _MOUNT, _FILE_MODE = 1, 6, 7, 10  # of reg_file_entry
_MODE = 3  # of ghost_file_entry
_MOUNT_ID, _TARGET = 2, 7  # of mnt_entry


class Ghost(NamedTuple):
    """A name that CRIU creates, or removes, at a restore."""

    mount: int
    name: str
    kind: str


def plan(images: Path) -> str:
    """What `ghost_paths.require` checks; raises OSError, and ValueError if the images make no sense."""
    found = ghosts(images)
    targets = _targets(images) if found else {}
    text = "".join(dict.fromkeys(_line(ghost, targets) for ghost in found))
    if len(text) > at_restore.GHOSTS_LIMIT:
        raise ValueError("more deleted files are open than can be examined")
    return text


def _line(ghost: Ghost, targets: dict[int, list[str]]) -> str:
    target = targets.get(ghost.mount)
    if target is None or ghost_paths.split(ghost.name)[:len(target)] != target:
        raise ValueError(f"{ghost.name} is on none of the mounts in the images")
    return ghost_paths.line(ghost.mount, ghost.kind, len(target), ghost.name)


def require_here(images: Path, init: int, proc: str = "/proc") -> None:
    """Raise PermissionError if the destination would refuse it; checked in the frozen container itself.

    What is on mounts of a mount namespace other than PID 1's is left to the destination. Raises OSError, and ValueError
    if the images make no sense or more is mounted than is read.
    """
    found = ghosts(images)
    if not found:
        return
    mounts = {mount.id for mount in parse_mountinfo(mount_tables.MountTables().read(f"{proc}/{init}/mountinfo"))}
    root = os.open(f"{proc}/{init}/root", os.O_PATH | os.O_CLOEXEC)
    try:
        for mount, name, kind in found:
            if mount in mounts and (trouble := ghost_paths.why_not(root, name, folder=kind == FOLDER)):
                raise PermissionError(ghost_paths.refused(name, kind, trouble))
    finally:
        os.close(root)


def ghosts(images: Path) -> list[Ghost]:
    """All ghosts of a dump; raises OSError, and ValueError if the images make no sense.

    CRIU also removes by path the other name that it has given to a file whose own name is gone (LINKED). What it makes
    for processes that are gone (PROCFS) has no path.
    """
    if not (images / REMAPS).exists():
        return []
    if (images / OLD_FILES).exists():
        raise ValueError(f"{OLD_FILES} is from no current CRIU")
    remaps = []
    for record in records(images / REMAPS, REMAPS_MAGIC, REMAPS_LIMIT):
        found = once(record, (_ORIGINAL, _OTHER, _TYPE))
        remaps.append(tuple(number(found.get(field)) for field in (_ORIGINAL, _OTHER, _TYPE)))
    files = _files(images, {id_ for original, other, type_ in remaps if type_ != _PROCFS for id_ in (original, other)})
    made = []
    for original, other, type_ in remaps:
        if type_ == _PROCFS:
            continue
        if type_ not in (_LINKED, _GHOST):
            raise ValueError(f"{REMAPS} has a remap of type {type_}")
        name, mount, mode = _file(files, original)
        if type_ == _LINKED:
            name, _, _ = _file(files, other)
            if stat.S_ISLNK(mode):
                raise ValueError(f"a symbolic link is open under a name that is gone: CRIU recreates it as {name}, and "
                                 "could follow it")
        made.append(Ghost(mount, name, FILE if type_ == _LINKED else _kind(images, other, name)))
    return made


def _files(images: Path, wanted: Collection[int]) -> dict[int, tuple[str, int, int]]:
    """The names of these files, their mounts and their modes, 0 if the version of CRIU does not record that."""
    found: dict[int, tuple[str, int, int]] = {}
    for record in records(images / FILES, FILES_MAGIC, FILES_LIMIT) if wanted else ():
        regular = once(record, (_REGULAR,)).get(_REGULAR)
        if regular is None:
            continue
        entry = once(string(regular), (_ID, _NAME, _MOUNT, _FILE_MODE))
        id_ = number(entry.get(_ID))
        if id_ not in wanted:
            continue
        name = os.fsdecode(string(entry.get(_NAME)))
        if id_ in found or not name.startswith("/") or "\0" in name:
            raise ValueError(f"{FILES} makes no sense")
        # The mount is missing if CRIU itself gave the name.
        found[id_] = name, signed(entry.get(_MOUNT)), number(entry.get(_FILE_MODE, 0))
    return found


def _file(files: dict[int, tuple[str, int, int]], id_: int) -> tuple[str, int, int]:
    if id_ not in files:
        raise ValueError(f"{FILES} lacks a file that {REMAPS} names")
    return files[id_]


def _kind(images: Path, id_: int, name: str) -> str:
    path = images / f"ghost-file-{id_:x}.img"
    with path.open("rb") as file:
        head = file.read(_GHOST_HEAD)
    mode = number(once(next(split(head, path.name, _GHOST_MAGIC), b""), (_MODE,)).get(_MODE))
    if stat.S_ISLNK(mode):
        raise ValueError(f"{name}, a deleted symbolic link that is open, cannot be recreated: CRIU could follow it")
    return FOLDER if stat.S_ISDIR(mode) else FILE


def _targets(images: Path) -> dict[int, list[str]]:
    """Where each mount is, as path components."""
    found: dict[int, list[str]] = {}
    for path in sorted(images.glob(MOUNTS)):
        for record in split(bounded_read.read(path, MOUNTS_LIMIT), path.name, MOUNTS_MAGIC):
            entry = once(record, (_MOUNT_ID, _TARGET))
            id_ = number(entry.get(_MOUNT_ID))
            if id_ in found:
                raise ValueError("a mount is in the images twice")
            found[id_] = ghost_paths.split(os.fsdecode(string(entry.get(_TARGET))))
    return found
