# SPDX-License-Identifier: GPL-2.0-or-later
"""How much of this host's room what arrives may take."""

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
JOURNAL_RESERVE = 1 << 30  # bytes, where a twentieth is more: of the file system with the journal, often the host's own
SHARE = 20  # who is not root leaves this part of a file system free, a twentieth
# What a stream of `btrfs send` may have beyond the bytes of the files that were counted: it names each file, and what
# belongs to it, in some hundred bytes; and the container writes on.
SLACK = 4 << 30
TIMES = 2
Piece = TypeVar("Piece")


@dataclasses.dataclass(frozen=True)
class Bounds:
    """What the files of a transfer are held to, beyond the sizes that the sender says."""

    leave: int = MARGIN  # bytes that stay free where they go
    most: int | None = None  # bytes of each file whose size it does not say
    twice: bool = False  # what has arrived is imported, which takes as much there once more

    def stays_free(self, length: int, imported: int) -> int:
        """Bytes that are left to others, and to the import of `length` bytes, `imported` of which it has taken."""
        return self.leave + (max(0, length - imported) if self.twice else 0)

    def check(self, name: str, length: int, more: int, announced: int | None, folder: int, imported: int = 0) -> None:
        """A file is to have `length` bytes, `more` of them new; raises ProtocolError, UsageError, OSError (ENOSPC)."""
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
    """Bytes that a sender who is not root leaves free on the file system of a folder."""
    found = os.statvfs(folder)
    return max(MARGIN, found.f_blocks * found.f_frsize // SHARE)


def check_journal(folder: Path) -> None:
    """Whether more may be recorded for a sender who is not root; raises NoSpace. `folder`: where the journal lies."""
    found = os.statvfs(folder)
    free, needed = found.f_bavail * found.f_frsize, min(reserve(folder), JOURNAL_RESERVE)
    if free < needed:
        raise NoSpace(where=folder, free=size(free), needed=size(needed), what="what must stay free")


def for_caller(folder: Path, caller: object) -> int:
    """The same for what somebody has brought, as the journal calls him; 0 for root."""
    return 0 if caller in (None, ROOT_CALLER) else reserve(folder)


def leaving(leave: int, pieces: Iterable[Piece], path: Path) -> Iterator[Piece]:
    """Pieces that go to the file system of a path; raises NoSpace once less than `leave` bytes are free there."""
    for piece in pieces:
        found = os.statvfs(path.parent)
        free = found.f_bavail * found.f_frsize
        if free < leave:
            what = "what must stay free"
            raise NoSpace(where=path.parent, free=size(free), needed=size(leave), what=what)
        yield piece


# For the stream of a disk, or of what has changed on it. How much the latter will be nobody says beforehand: so it is
# ended while there still is room for the import of what has come, which stays, and others there go on writing.
OF_DISK = Bounds(twice=True)


def of_disk(folder: Path, announced: int | None) -> Bounds:
    """The same from a sender who is not root: more than all of the disk it is not."""
    return Bounds(reserve(folder), None if announced is None else TIMES * max(0, announced) + SLACK, twice=True)


def of_images(folder: Path) -> Bounds:
    """For memory images from a sender who is not root. A file system of their own was made as large as they may be."""
    return Bounds(0 if os.path.ismount(folder) else reserve(folder))
