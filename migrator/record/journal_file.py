# SPDX-License-Identifier: GPL-2.0-or-later
"""The journal's file, and how it can be opened even when its disk is full.

Opening a database that has a write-ahead log creates a 32 KiB file beside it, `-shm`, through which processes share it:
without room for that, nobody could even read (sqlite.org/wal.html). With exclusive access none is needed (see there,
"Use of WAL Without Shared-Memory"). So if it cannot be opened for sharing, each access opens it exclusively and closes
it again, because others want it too; the next access tries the usual way first.

If the file system has become read-only (errors=remount-ro, ext4(5)), exclusive access fails too, because a lock that
keeps others off requires a file open for writing. As nobody can write there, it is then read without any lock.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import sqlite3
import time
from pathlib import Path

from migrator.errors.this_host import JournalBroken

SCHEMA_VERSION = 1
_PAUSE = 0.01  # seconds between two tries for a lock that SQLite does not wait for by itself
_TRIES = 20  # to find a log there
PRIMARY = 0xFF  # mask for the primary part of an SQLite result code (sqlite.org/rescode.html)
# What SQLite reports if it cannot create a file beside the database or has no room in it.
_NO_ROOM = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}

_SCHEMA = """
CREATE TABLE migrations (
    id TEXT NOT NULL, role TEXT NOT NULL, name TEXT NOT NULL, lxcpath TEXT NOT NULL, peer TEXT NOT NULL,
    state TEXT NOT NULL, owner TEXT NOT NULL, detail TEXT NOT NULL, created REAL NOT NULL, updated REAL NOT NULL,
    PRIMARY KEY (id, role)
) STRICT;
CREATE TABLE events (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL, role TEXT NOT NULL, time REAL NOT NULL,
    step TEXT NOT NULL, phase TEXT NOT NULL, detail TEXT NOT NULL
) STRICT;
CREATE INDEX events_by_migration ON events (id, role, number);
"""


class JournalFile:
    """The open file. Each access waits for those of others for up to `patience` seconds.

    Methods raise sqlite3.Error; opening also raises OSError and JournalBroken.
    """

    def __init__(self, path: Path, patience: float) -> None:
        self.path = path
        self._patience = patience
        self._db: sqlite3.Connection | None = None
        self._passing = True  # close it at the end of this access
        self._closed = False
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Only if it does not exist: closing any descriptor of a file drops all locks that the process holds on it
        # through others (fcntl_locking(2)), and another process would then take the journal open here for unused.
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        self.connection()
        self.release()

    def connection(self) -> sqlite3.Connection:
        """A connection for one access; release it at the end."""
        if self._closed:
            raise sqlite3.ProgrammingError("it is closed")
        self.release_unless_writing()  # in case an exception prevented that before
        return self._open() if self._db is None else self._db

    def release(self) -> None:
        """End of an access: end a transaction left open by an exception, and give up what we held exclusively."""
        if self._passing:
            self._let_go()
        elif self._is_writing():
            self._db.execute("ROLLBACK")  # type: ignore[union-attr]

    def release_unless_writing(self) -> None:
        """As `release`, after a read, which may be part of a transaction."""
        if self._passing and not self._is_writing():
            self._let_go()

    def _is_writing(self) -> bool:
        with contextlib.suppress(sqlite3.ProgrammingError):  # it is closed
            return self._db is not None and self._db.in_transaction
        return False

    def wait_for(self, seconds: float) -> None:
        """Set how long to wait for others from here on."""
        self._patience = seconds
        if self._db is not None:
            self._db.execute(f"PRAGMA busy_timeout = {round(seconds * 1000)}")

    def close(self) -> None:
        self._closed = True
        self._let_go()

    def _let_go(self) -> None:
        """The last to close it checkpoints the log into the database; if there is no room for that, the log stays."""
        if self._db is not None:
            self._drop()
            _keep_a_log(self.path)

    def _drop(self) -> None:
        if self._db is not None:
            self._db.close()  # first: if interrupted before the next line, it is closed once more
        self._db, self._passing = None, True

    def _open(self) -> sqlite3.Connection:
        """Waits the way SQLite does, by counting its pauses: time for which the process was stopped is not time waited.
        """
        # Whoever closes it exclusively may have removed the log and be about to create another one, with the last free
        # inode.
        left = {sqlite3.SQLITE_BUSY: round(self._patience / _PAUSE), sqlite3.SQLITE_CANTOPEN: _TRIES}
        while True:
            try:
                return self._connect(alone=False)
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & PRIMARY not in _NO_ROOM:
                    raise
            try:
                return self._connect(alone=True)
            except sqlite3.OperationalError as error:
                code = error.sqlite_errorcode & PRIMARY
                if code != sqlite3.SQLITE_BUSY and _is_read_only(self.path):
                    return self._connect(alone=True, read_only=True)
                if not left.get(code):
                    raise
                left[code] -= 1
            time.sleep(_PAUSE * (0.5 + random.random()))  # noqa: S311 -- so that two do not always meet

    def _connect(self, *, alone: bool, read_only: bool = False) -> sqlite3.Connection:
        """If it raises, nothing stays open: two processes that each hold part of exclusive access would wait for ever.

        `read_only` takes no locks and includes what is in the log; a write raises SQLITE_READONLY.
        """
        patience = 0.0 if alone else self._patience
        # vfs: sqlite.org/vfs.html. Should the file system become writable meanwhile, this connection still writes
        # nothing.
        path = f"{self.path.absolute().as_uri()}?mode=ro&vfs=unix-none" if read_only else os.fspath(self.path)
        try:
            # Threads take turns: each transaction is made by a single thread from beginning to end.
            self._db = db = sqlite3.connect(path, timeout=0.0, isolation_level=None, check_same_thread=False,
                                            uri=read_only)
            db.row_factory = sqlite3.Row
            if alone:
                db.execute("PRAGMA locking_mode = EXCLUSIVE")
            _use_wal(db, patience)
            db.execute(f"PRAGMA busy_timeout = {round(patience * 1000)}")
            db.execute("PRAGMA synchronous = FULL")
            _make(db, self.path)
            self._passing = alone or _is_read_only(self.path)  # to be opened the usual way again as soon as possible
        except BaseException:
            self._drop()
            raise
        return db


def _keep_a_log(path: Path) -> None:
    """The last to close it removes the log; an empty one takes its place, because without a log nobody can read.

    So there is one even when no inode is free to create it. There is no lock on it that closing it could lose.
    """
    with contextlib.suppress(OSError):
        os.close(os.open(f"{os.path.realpath(path)}-wal", os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def _is_read_only(path: Path) -> bool:
    """Whether its file system is read-only; found out by opening the log for writing.

    Nothing else tells if an error has made an ext4 so (EXT4_FLAGS_EMERGENCY_RO, kernel 6.15). It must be the log:
    closing the database's file would lose the locks held on it, whereas there are none on the log.
    """
    try:
        os.close(os.open(f"{os.path.realpath(path)}-wal", os.O_WRONLY | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.EROFS
    return False


def _make(db: sqlite3.Connection, path: Path) -> None:
    """Create the tables if there are none yet; raises JournalBroken if another version has created different ones."""
    version = _version(db)
    if version == 0:
        db.execute("BEGIN IMMEDIATE")
        version = _version(db)  # another command may have created them meanwhile
        if version == 0:
            for statement in _SCHEMA.split(";"):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            version = SCHEMA_VERSION
        db.execute("COMMIT")
    if version != SCHEMA_VERSION:
        raise JournalBroken(path=path, reason=f"it has schema {version}, this version knows {SCHEMA_VERSION}")


def _version(db: sqlite3.Connection) -> int:
    """The version of the tables; 0 if there are none yet."""
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _use_wal(db: sqlite3.Connection, patience: float) -> None:
    """Switch to WAL mode; for this one change SQLite does not wait by itself while another command makes it too.

    With exclusive access it would wait, anew at each try: so it must not have been given a timeout yet.
    """
    for left in range(round(patience / _PAUSE), -1, -1):
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & PRIMARY != sqlite3.SQLITE_BUSY or not left:
                raise
            time.sleep(_PAUSE)
