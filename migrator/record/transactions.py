# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading and writing a journal: all or nothing, and with a limit on how long to wait for others."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from migrator.errors.this_host import JournalBroken
from migrator.record.journal_file import PRIMARY, JournalFile

WAIT_FOR_LOCK = 10.0  # seconds
HURRY = 0.2  # seconds; used when a container cannot run until something is recorded


def is_busy(error: JournalBroken) -> bool:
    """Whether nothing is wrong with the journal except that others have not released it in time."""
    cause = error.__cause__
    return isinstance(cause, sqlite3.Error) and cause.sqlite_errorcode & PRIMARY == sqlite3.SQLITE_BUSY


class Transactions:
    """An open journal. Use it as a context manager, or call `close`.

    Each access waits for others for up to `patience` seconds.
    """

    def __init__(self, path: Path, patience: float = WAIT_FOR_LOCK) -> None:
        self.path = path
        self._patience = patience
        self._latest: object = None  # the most recently begun transaction
        try:
            self._file = JournalFile(path, patience)
        except (OSError, sqlite3.Error) as error:
            raise JournalBroken(path=path, reason=error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        try:
            try:
                return self._file.connection().execute(query, values).fetchall()
            finally:
                self._file.release_unless_writing()
        except sqlite3.Error as error:
            raise JournalBroken(path=self.path, reason=error) from error

    @contextlib.contextmanager
    def transaction(self, *, synced: bool = True) -> Iterator[sqlite3.Connection]:
        """All or nothing, and on disk once the block has been left, unless `synced` is off.

        A Ctrl-C may come between any two steps, of this function too; the next use of the journal ends what it leaves
        open.
        """
        mine = self._latest = object()
        try:
            self.end_unfinished()
            try:
                db = self._file.connection()
                # With a write-ahead log, NORMAL leaves the sync to the next transaction that is FULL.
                db.execute(f"PRAGMA synchronous = {'FULL' if synced else 'NORMAL'}")
                db.execute("BEGIN IMMEDIATE")
                yield db
                db.execute("COMMIT")
            finally:
                if self._latest is mine:  # otherwise it was left open, and this is its late end
                    self.end_unfinished()
        except sqlite3.Error as error:
            raise JournalBroken(path=self.path, reason=error) from error

    @contextlib.contextmanager
    def hurried(self) -> Iterator[None]:
        """Writes within the block wait at most HURRY for others, which may be stopped half-way."""
        self._wait_for(HURRY)
        try:
            yield
        finally:
            self._wait_for(self._patience)

    def _wait_for(self, seconds: float) -> None:
        with contextlib.suppress(sqlite3.Error):  # whoever writes next gets the error
            self._file.wait_for(seconds)

    def end_unfinished(self) -> None:
        """Roll back a transaction that an exception has left open; raises JournalBroken."""
        try:
            self._file.release()
        except sqlite3.Error as error:
            raise JournalBroken(path=self.path, reason=error) from error
