# SPDX-License-Identifier: GPL-2.0-or-later
"""What the threads of a receiver tell each other of a file that arrives, and its watcher."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from migrator.transfer.segments import Segment


class Watcher(Protocol):
    """Is told what of a file is there to be read, while the rest still arrives."""

    taken: int  # bytes of it that have been read, and have taken their room

    def begin(self, kept: Sequence[Segment]) -> None:
        """It begins, or goes on behind segments that were there already."""

    def add(self, segment: Segment) -> None: ...

    def end(self, *, complete: bool) -> None:
        """Nothing more comes. Called also where nothing has begun."""


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
    """Something that is written and waits to be synced and acknowledged."""

    file: Incoming
    line: bytes  # for the index
    segment: Segment | None  # None: that was the last one
