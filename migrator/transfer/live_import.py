# SPDX-License-Identifier: GPL-2.0-or-later
"""The import behind a transfer: `btrfs receive` reads a spooled stream while it is still arriving.

It runs in a thread of the process that receives the stream; whoever needs the subvolume waits for that thread. The
spool keeps the stream all the same: if this fails or the process is killed, the import is made from there.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from migrator.base import log
from migrator.base.run import Program
from migrator.transfer import received_snapshot, spool
from migrator.transfer.segments import Segment

END_LIMIT = 10.0  # seconds that an import which was broken off may take to finish the write that it is in


class Behind:
    """One stream's import; it begins with the stream."""

    def __init__(self, file: Path, target: Path, leave: int = 0) -> None:
        self.target = target
        self.taken = 0  # bytes that it has read, even if it failed: what it made of them still takes up space
        self._spool = file.parent
        self._leave = leave  # bytes that must stay free
        self._follower = spool.Follower(file)
        self._thread: threading.Thread | None = None
        self._good = False
        self._broken_off = False
        self._program: Program | None = None

    # --- what the receiver of the stream tells (receiver.Watcher) ---

    def begin(self, kept: Sequence[Segment]) -> None:
        self._follower.begin(kept)
        self._thread = threading.Thread(target=self._receive, name="migrator-import")
        self._thread.start()

    def add(self, segment: Segment) -> None:
        self._follower.add(segment)

    def end(self, *, complete: bool) -> None:
        self._follower.end(complete=complete)

    # ---

    def _receive(self) -> None:
        try:
            received_snapshot.receive(self._pieces(), self.target, self._spool, leave=self._leave, begun=self._begun)
            self._good = True
        except Exception as error:  # then it is imported from the spool
            log.debug(f"The import alongside the transfer failed: {error}")

    def _pieces(self) -> Iterator[memoryview]:
        for piece in self._follower:
            yield piece
            self.taken += len(piece)

    def _begun(self, program: Program) -> None:
        self._program = program
        if self._broken_off:
            program.kill_group()

    def wait(self, limit: float | None = None) -> bool:
        """Wait until it has ended one way or the other; after `limit` seconds it is broken off.

        Returns whether it has ended.

        `btrfs receive` may have the whole stream and still be at work for minutes; then it is killed.
        """
        if self._thread is None:
            return True
        self._thread.join(None if limit is None else max(0.0, limit))
        if self._thread.is_alive():
            self._follower.end(complete=False)
            self._broken_off = True  # first, because it may begin at this moment
            if self._program:
                self._program.kill_group()
            self._thread.join(END_LIMIT)
        return not self._thread.is_alive()

    def brought(self, target: Path, limit: float | None = None) -> bool:
        """Whether `target` is there within `limit` seconds, received from the whole stream."""
        return self.wait(limit) and self._good and target == self.target
