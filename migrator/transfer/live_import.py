# SPDX-License-Identifier: GPL-2.0-or-later
"""The import behind a transfer: `btrfs receive` reads a spooled stream while it still arrives.

It runs in a thread of the process that receives the stream; whoever needs the subvolume waits for it there. The spool
keeps the stream all the same: when this fails, or the process is killed, it is imported from there.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from migrator.base import log
from migrator.base.run import Program
from migrator.transfer import received_snapshot, spool
from migrator.transfer.segments import Segment

END_LIMIT = 10.0  # seconds that one which was broken off may take, for the write that it is in


class Behind:
    """One stream's import; it begins with the stream."""

    def __init__(self, file: Path, target: Path, leave: int = 0) -> None:
        self.target = target
        self.taken = 0  # bytes that it has read, also where it failed: what it has made of them lies there still
        self._spool = file.parent
        self._leave = leave  # bytes that stay free
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
        except Exception as error:  # it is imported from the spool then
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
        """Until it has ended, in whatever way; after `limit` seconds it is broken off. Whether it has ended.

        `btrfs receive` may have all of the stream and be at work for minutes still: it is killed then.
        """
        if self._thread is None:
            return True
        self._thread.join(None if limit is None else max(0.0, limit))
        if self._thread.is_alive():
            self._follower.end(complete=False)
            self._broken_off = True  # first, as it may begin at this moment
            if self._program:
                self._program.kill_group()
            self._thread.join(END_LIMIT)
        return not self._thread.is_alive()

    def brought(self, target: Path, limit: float | None = None) -> bool:
        """Whether `target` is there now, received from the whole stream, within `limit` seconds."""
        return self.wait(limit) and self._good and target == self.target
