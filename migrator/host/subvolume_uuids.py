# SPDX-License-Identifier: GPL-2.0-or-later
"""Which subvolumes of a file system have a uuid: as their own, or as that of what they were received from.

`btrfs receive` goes by this when a stream names a subvolume, and takes the first one that it finds
(search_source_subvol in btrfs-progs' cmds/receive.c).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import uuid as uuid_module
from collections.abc import Iterable, Iterator
from pathlib import Path

from migrator.base import log
from migrator.errors import Interrupted
from migrator.host import btrfs

# <linux/btrfs.h> and <linux/btrfs_tree.h>
_TREE_SEARCH = 0xD0009411  # BTRFS_IOC_TREE_SEARCH
_SIZE = 4096  # of struct btrfs_ioctl_search_args, which begins with a struct btrfs_ioctl_search_key:
_KEY = struct.Struct("=7Q4I4Q")  # tree; objectid, offset, transid, each from and to; type from and to; items
_HEADER = struct.Struct("=3Q2I")  # struct btrfs_ioctl_search_header: transid, objectid, offset, type, length
_UUID_TREE = 9
_TYPES = (251, 252)  # BTRFS_UUID_KEY_SUBVOL, BTRFS_UUID_KEY_RECEIVED_SUBVOL
_LAST = (1 << 64) - 1


def are_all_in(folder: Path, uuid: str) -> bool:
    """Whether subvolumes in `folder` itself have this uuid, and no others on its file system; raises OSError."""
    found = _having(folder, uuid)
    return bool(found) and found <= _right_in(folder)


def ancestors(path: Path) -> Iterator[str]:
    """The uuids of what a subvolume is a snapshot of, of what that is one of, and so on.

    It ends with the first that was removed: only that one's own uuid is known. Raises NotBtrfs, OSError.
    """
    uuid = btrfs.info(path).parent_uuid
    while uuid:
        yield uuid
        found = _having(path, uuid, _TYPES[:1])
        uuid = btrfs.parent_of(min(found), path) if found else ""


def is_told(path: Path) -> bool:
    """Whether all of its `ancestors` still exist: otherwise it may be a copy of anything."""
    uuids = [*ancestors(path)]
    return not uuids or bool(_having(path, uuids[-1], _TYPES[:1]))


def _having(folder: Path, uuid: str, types: Iterable[int] = _TYPES) -> set[int]:
    """The ids of the subvolumes that have it."""
    found: set[int] = set()
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for type_ in types:
            found |= _looked_up(fd, type_, uuid_module.UUID(uuid).bytes)
    finally:
        os.close(fd)
    return found


def _looked_up(fd: int, type_: int, uuid: bytes) -> set[int]:
    first, second = struct.unpack("<2Q", uuid)
    buffer = bytearray(_SIZE)
    _KEY.pack_into(buffer, 0, _UUID_TREE, first, first, second, second, 0, _LAST, type_, type_, 1, 0, 0, 0, 0, 0)
    try:
        fcntl.ioctl(fd, _TREE_SEARCH, buffer)
    except OSError as error:
        if error.errno == errno.ENOENT:  # an old file system without such a tree: nothing is found there
            return set()
        raise
    return ids(buffer)


def ids(answer: bytes | bytearray) -> set[int]:
    """The subvolumes that the answer to a search for one item names."""
    if not _KEY.unpack_from(answer)[9]:
        return set()
    length, at = _HEADER.unpack_from(answer, _KEY.size)[4], _KEY.size + _HEADER.size
    return {number for (number,) in struct.iter_unpack("<Q", answer[at:at + length])}


def _right_in(folder: Path) -> set[int]:
    found = set()
    for path in folder.iterdir():
        try:
            if not path.is_symlink() and btrfs.is_subvolume(path):
                found.add(btrfs.id_of(path))
        except Interrupted:
            raise
        except Exception as error:  # an error of the library's own, for one that is just being removed
            log.debug(f"{path} has no number: {error}")
    return found
