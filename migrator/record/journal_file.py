# SPDX-License-Identifier: GPL-2.0-or-later
"""The journal's file: how it is opened, be it that its disk has no room left.

Whoever opens a database that has a write-ahead log makes a file of 32 KiB beside it, `-shm`, through which several
share it: without room for that nobody could even read (sqlite.org/wal.html). Who has the database all for himself needs
none (there, "Use of WAL Without Shared-Memory"). So where it cannot be opened for several, each access opens it for
itself alone and closes it again, as others want it too; the next one tries the usual way first.

Where the file system has become read-only (errors=remount-ro, ext4(5)) that one cannot be had either: for a lock that
keeps others off, a file must be open for writing. As nobody can write there, it is read without any.
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
PRIMARY = 0xFF  # of a result code of SQLite's (sqlite.org/rescode.html)
# What it says where it can make no file beside the database, or has no room in it.
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
    """The file, open. Every access may wait for others' for up to `patience` seconds.

    Methods raise sqlite3.Error; when it is opened, OSError and JournalBroken too.
    """

    def __init__(self, path: Path, patience: float) -> None:
        self.path = path
        self._patience = patience
        self._db: sqlite3.Connection | None = None
        self._passing = True  # what is open goes with this access
        self._closed = False
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Only while it is not there: whoever closes a descriptor of a file loses the locks that he has on it by
        # another one (fcntl_locking(2)), and another process would take the journal that is open here for unused.
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        self.connection()
        self.release()

    def connection(self) -> sqlite3.Connection:
        """For one access, at whose end it is to be released."""
        if self._closed:
            raise sqlite3.ProgrammingError("it is closed")
        self.release_unless_writing()  # an exception may have come before that
        return self._open() if self._db is None else self._db

    def release(self) -> None:
        """An access is over: end a transaction that an exception has left open, and let others have what is ours."""
        if self._passing:
            self._let_go()
        elif self._is_writing():
            self._db.execute("ROLLBACK")  # type: ignore[union-attr]

    def release_unless_writing(self) -> None:
        """The same after a read, which may be part of a transaction."""
        if self._passing and not self._is_writing():
            self._let_go()

    def _is_writing(self) -> bool:
        with contextlib.suppress(sqlite3.ProgrammingError):  # it is closed
            return self._db is not None and self._db.in_transaction
        return False

    def wait_for(self, seconds: float) -> None:
        """How long to wait for others from here on."""
        self._patience = seconds
        if self._db is not None:
            self._db.execute(f"PRAGMA busy_timeout = {round(seconds * 1000)}")

    def close(self) -> None:
        self._closed = True
        self._let_go()

    def _let_go(self) -> None:
        """Whoever closes it last brings the log into the database; where there is no room for that the log stays."""
        if self._db is not None:
            self._drop()
            _keep_a_log(self.path)

    def _drop(self) -> None:
        if self._db is not None:
            self._db.close()  # first: who was interrupted before the next line closes it once more
        self._db, self._passing = None, True

    def _open(self) -> sqlite3.Connection:
        """As SQLite does, it counts its pauses: who has been held up has not waited."""
        # Who closes it alone may have removed the log, and be about to put another one there, of the last inode.
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
        """Raises with nothing left open: two that want it alone, and each have a part of that, would wait for ever.

        `read_only` is without locks, and with what the log has; a write raises SQLITE_READONLY.
        """
        patience = 0.0 if alone else self._patience
        # vfs: sqlite.org/vfs.html. Should the file system be written again meanwhile, this one still writes nothing.
        path = f"{self.path.absolute().as_uri()}?mode=ro&vfs=unix-none" if read_only else os.fspath(self.path)
        try:
            # Threads take turns: a transaction is made by one of them from begin to end.
            self._db = db = sqlite3.connect(path, timeout=0.0, isolation_level=None, check_same_thread=False,
                                            uri=read_only)
            db.row_factory = sqlite3.Row
            if alone:
                db.execute("PRAGMA locking_mode = EXCLUSIVE")
            _use_wal(db, patience)
            db.execute(f"PRAGMA busy_timeout = {round(patience * 1000)}")
            db.execute("PRAGMA synchronous = FULL")
            _make(db, self.path)
            self._passing = alone or _is_read_only(self.path)  # to be had otherwise as soon as it is not
        except BaseException:
            self._drop()
            raise
        return db


def _keep_a_log(path: Path) -> None:
    """Whoever closes it last removes the log: one without a byte takes its place, as nobody can read without one.

    So there is one where none can be made any more, as no inode is free. No lock lies on it that a close would lose.
    """
    with contextlib.suppress(OSError):
        os.close(os.open(f"{os.path.realpath(path)}-wal", os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def _is_read_only(path: Path) -> bool:
    """Whether its file system is, which where an error has made ext4 so nothing but an open for writing tells
    (EXT4_FLAGS_EMERGENCY_RO, kernel 6.15).

    That is the log's: a close of the database's file would lose the locks that lie on it, and on the log lie none.
    """
    try:
        os.close(os.open(f"{os.path.realpath(path)}-wal", os.O_WRONLY | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.EROFS
    return False


def _make(db: sqlite3.Connection, path: Path) -> None:
    """Make the tables if there are none yet; raises JournalBroken where another version has made them otherwise."""
    version = _version(db)
    if version == 0:
        db.execute("BEGIN IMMEDIATE")
        version = _version(db)  # another command may have made them meanwhile
        if version == 0:
            for statement in _SCHEMA.split(";"):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            version = SCHEMA_VERSION
        db.execute("COMMIT")
    if version != SCHEMA_VERSION:
        raise JournalBroken(path=path, reason=f"it has schema {version}, this version knows {SCHEMA_VERSION}")


def _version(db: sqlite3.Connection) -> int:
    """Of the tables; 0 where there are none yet."""
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _use_wal(db: sqlite3.Connection, patience: float) -> None:
    """Write ahead; for this one change SQLite does not wait by itself while another command makes it too.

    For who has the file alone it would, at each try anew: so it must not have been told to wait for anybody yet.
    """
    for left in range(round(patience / _PAUSE), -1, -1):
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & PRIMARY != sqlite3.SQLITE_BUSY or not left:
                raise
            time.sleep(_PAUSE)
