# SPDX-License-Identifier: GPL-2.0-or-later
"""What the threads of a receiver tell each other, and its watcher, about an arriving file."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from migrator.transfer.segments import Segment


class Watcher(Protocol):
    """Is told how much of a file can be read while the rest is still arriving."""

    taken: int  # bytes of it that have been read, and whose space has been used

    def begin(self, kept: Sequence[Segment]) -> None:
        """It begins, or resumes after segments that were there already."""

    def add(self, segment: Segment) -> None: ...

    def end(self, *, complete: bool) -> None:
        """Nothing more will come. Called even if nothing has begun."""


@dataclasses.dataclass
class Incoming:
    """A file that is being received."""

    name: str
    data_fd: int
    index_fd: int
    segments: list[Segment]
    length: int  # raw bytes written


@dataclasses.dataclass(frozen=True)
class Written:
    """Something that has been written and is waiting to be synced and acknowledged."""

    file: Incoming
    line: bytes  # for the index
    segment: Segment | None  # None: that was the last one
