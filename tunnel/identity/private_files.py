# SPDX-License-Identifier: GPL-2.0-or-later
"""The tunnel's own small files: where they are, and how to read and write them so that nobody else gets access."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from migrator.base import durable
from tunnel.tunnel_errors import TunnelFileUnusable

STATE = Path("/var/lib/migrator")
SIZE_MAX = 1024 * 1024  # bytes


def read_private(path: Path) -> str | None:
    """The text of a file that only its owner may access, None if there is none; raises TunnelFileUnusable."""
    try:
        # O_NOFOLLOW: a symlink that somebody else has put there must not choose which file is read.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_uid not in (0, os.geteuid()):
                raise _unusable(path, "it belongs to someone else or is not a file")
            if status.st_mode & 0o077:
                fix = f"Check who could have read it, then: chmod 600 {path}"
                raise _unusable(path, "others may access it", fix)
            text = file.read(SIZE_MAX + 1)
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise _unusable(path, "it is not text") from error
    except OSError as error:
        raise _failed(path, error) from error
    if len(text) > SIZE_MAX:
        raise _unusable(path, "it is too large")
    return text


def write_private(path: Path, text: str, *, replace: bool) -> bool:
    """Write a file of mode 0600 that is never visible half-written; raises TunnelFileUnusable.

    Without `replace` a file that exists already stays, and the result is False.
    """
    new = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
                file.write(text)
                durable.flush(file)
            if replace:
                new.replace(path)
            else:
                path.hardlink_to(new)
        finally:
            new.unlink(missing_ok=True)
        durable.sync_folder(path.parent)
    except FileExistsError:
        return False
    except OSError as error:
        raise _failed(path, error) from error
    return True


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes of ours from changing `path` meanwhile; raises TunnelFileUnusable."""
    lock = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _failed(path, error) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def folder_locked(folder: Path) -> Iterator[None]:
    """Keep other callers of this function out of a folder, which is created if need be; raises TunnelFileUnusable.

    The folder itself is the lock, so that nothing is left once it is removed. Whoever removes it holds the lock.
    """
    while True:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:  # removed again just now
            continue
        except OSError as error:
            raise _failed(folder, error) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if _is(folder, fd):  # otherwise it was removed meanwhile: others hold the new one
                yield
                return
        finally:
            os.close(fd)


def _is(path: Path, fd: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(path.lstat(), os.fstat(fd))
    return False


def _failed(path: Path, error: OSError) -> TunnelFileUnusable:
    if isinstance(error, PermissionError):
        return _unusable(path, "permission denied", fix="Run it as root, for example with sudo.")
    return _unusable(path, error.strerror or str(error))


def _unusable(path: Path, reason: str, fix: str = "Check the file and its folder.") -> TunnelFileUnusable:
    return TunnelFileUnusable(path=path, reason=reason, fix=fix)
