# SPDX-License-Identifier: GPL-2.0-or-later
"""Replace the symlink /etc/localtime, which systemd watches, by a regular file with the same content; and back.

CRIU cannot dump an inotify watch on a symlink (check_open_handle in criu/fsnotify.c). When it is replaced, systemd
watches the file instead, so that nothing has to be restarted. The symlink's target is kept in an extended attribute of
that file: so it is there as soon as the file is, moves along with the disk, and tells our file from anybody else's.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from migrator.guest import regular_files

PATH = "/etc/localtime"
ATTRIBUTE = "user.migrator.link"  # the target of the symlink
_NEW = Path("/etc/.localtime.migrator")
_SIZE_MAX = 1 << 20  # bytes of a time zone
_TARGET_MAX = 1024  # bytes
_NOT_OURS = {errno.ENOENT, errno.ENODATA, errno.EOPNOTSUPP}


def make_file() -> None:
    """Atomically replace the symlink by a copy of the file that it leads to; does nothing if it is no symlink.

    Raises OSError, also if that file does not describe a time zone, or if the symlink has just been changed.
    """
    try:
        target = os.readlink(PATH)  # noqa: PTH115 -- exactly as it is: Path would normalise it
    except OSError:
        return
    if len(os.fsencode(target)) > _TARGET_MAX:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), PATH)
    data = _content()
    _forget()
    fd = os.open(_NEW, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        while data:
            data = data[os.write(fd, data):]
        os.setxattr(fd, ATTRIBUTE, os.fsencode(target))
        os.fchmod(fd, 0o644)
        os.fsync(fd)
    finally:
        os.close(fd)
    if os.readlink(PATH) != target:  # noqa: PTH115 -- the time zone was changed meanwhile
        _forget()
        raise OSError(errno.EAGAIN, "it has just been changed", PATH)
    _NEW.rename(PATH)


def make_link() -> bool:
    """Replace the file by the symlink again, if `make_file` has made it; returns whether it had. Raises OSError."""
    _forget()
    try:
        target = os.getxattr(PATH, ATTRIBUTE, follow_symlinks=False)
    except OSError as error:
        if error.errno in _NOT_OURS:
            return False
        raise
    _NEW.symlink_to(os.fsdecode(target[:_TARGET_MAX]))
    _NEW.rename(PATH)
    return True


def _content() -> bytes:
    fd = regular_files.opened(PATH, follow=True)
    try:
        data = os.read(fd, _SIZE_MAX + 1)
    finally:
        os.close(fd)
    if not data.startswith(b"TZif") or len(data) > _SIZE_MAX:  # tzfile(5)
        raise OSError(errno.EINVAL, "it does not describe a time zone", PATH)
    return data


def _forget() -> None:
    """Remove what an attempt that was killed has left."""
    _NEW.unlink(missing_ok=True)
