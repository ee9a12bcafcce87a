# SPDX-License-Identifier: GPL-2.0-or-later
"""How much of this host's disk space arriving data may use."""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from migrator.base.figures import size
from migrator.errors import UsageError
from migrator.errors.connection import ProtocolError
from migrator.errors.data import NoSpace
from migrator.record.detail import ROOT_CALLER

MARGIN = 64 * 1024 * 1024  # bytes that stay free on a disk
JOURNAL_RESERVE = 1 << 30  # bytes, if a twentieth is more: of the journal's file system, which is often the host's root
SHARE = 20  # a sender who is not root must leave this fraction of a file system free: a twentieth
# How much larger than the files counted a `btrfs send` stream may be: it names each file, and what belongs to it, in a
# few hundred bytes; and the container keeps writing.
SLACK = 4 << 30
TIMES = 2
Piece = TypeVar("Piece")


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Limits for the files of a transfer, beyond the sizes that the sender announces."""

    leave: int = MARGIN  # bytes that stay free where they go
    most: int | None = None  # bytes of each file whose size is not announced
    twice: bool = False  # what has arrived is imported, which takes the same space there once more

    def stays_free(self, length: int, imported: int) -> int:
        """Bytes reserved for others, and for importing `length` bytes of which the import has already taken `imported`.
        """
        return self.leave + (max(0, length - imported) if self.twice else 0)

    def check(self, name: str, length: int, more: int, announced: int | None, folder: int, imported: int = 0) -> None:
        """Check a file of `length` bytes, `more` of them new; raises ProtocolError, UsageError, OSError (ENOSPC)."""
        if announced is not None and length > announced:
            raise ProtocolError(reason=f"it sends more of {name} than the {announced} bytes that it announced")
        if announced is None and self.most is not None and length > self.most:
            raise UsageError(reason=f"there is more of {name} than {size(self.most)}, {TIMES} times what was announced"
                                    f" for the disk and {size(SLACK)}")
        if leave := self.stays_free(length, imported):
            found = os.fstatvfs(folder)
            if found.f_bavail * found.f_frsize < leave + more:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def reserve(folder: Path) -> int:
    """Bytes that a sender who is not root must leave free on the file system of a directory."""
    found = os.statvfs(folder)
    return max(MARGIN, found.f_blocks * found.f_frsize // SHARE)


def check_journal(folder: Path) -> None:
    """Whether more may be recorded for a sender who is not root; raises NoSpace. `folder` is where the journal is."""
    found = os.statvfs(folder)
    free, needed = found.f_bavail * found.f_frsize, min(reserve(folder), JOURNAL_RESERVE)
    if free < needed:
        raise NoSpace(where=folder, free=size(free), needed=size(needed), what="what must stay free")


def for_caller(folder: Path, caller: object) -> int:
    """As `reserve`, for what a caller, in the journal's terms, has brought; 0 for root."""
    return 0 if caller in (None, ROOT_CALLER) else reserve(folder)


def leaving(leave: int, pieces: Iterable[Piece], path: Path) -> Iterator[Piece]:
    """Pass on pieces that go to a path's file system; raises NoSpace once less than `leave` bytes are free there."""
    for piece in pieces:
        found = os.statvfs(path.parent)
        free = found.f_bavail * found.f_frsize
        if free < leave:
            what = "what must stay free"
            raise NoSpace(where=path.parent, free=size(free), needed=size(leave), what=what)
        yield piece


# For the stream of a disk or an increment. How large an increment will be nobody says beforehand: so it is ended while
# there is still room to import what has come, which stays, and for others who write there.
OF_DISK = Bounds(twice=True)


def of_disk(folder: Path, announced: int | None) -> Bounds:
    """As `OF_DISK`, from a sender who is not root: the stream cannot be larger than the whole disk."""
    return Bounds(reserve(folder), None if announced is None else TIMES * max(0, announced) + SLACK, twice=True)


def of_images(folder: Path) -> Bounds:
    """For memory images from a sender who is not root. If they have a file system of their own, its size is the limit.
    """
    return Bounds(0 if os.path.ismount(folder) else reserve(folder))
