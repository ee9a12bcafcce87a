# SPDX-License-Identifier: GPL-2.0-or-later
"""The link /etc/localtime, which systemd watches, becomes a regular file with the same content, and a link again.

CRIU cannot dump a watch on a symbolic link (check_open_handle in criu/fsnotify.c). systemd watches what comes in the
place of the one that it watched, so nothing is restarted. Where the link led stands in an attribute of the file that
takes its place: it is there as soon as that is, moves along with the disk, and tells ours from a file of anybody's.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from migrator.guest import regular_files

PATH = "/etc/localtime"
ATTRIBUTE = "user.migrator.link"  # where it led
_NEW = Path("/etc/.localtime.migrator")
_SIZE_MAX = 1 << 20
_TARGET_MAX = 1024
_NOT_OURS = {errno.ENOENT, errno.ENODATA, errno.EOPNOTSUPP}


def make_file() -> None:
    """A copy takes the link's place, at once; nothing is done where there is no link. Raises OSError."""
    try:
        target = os.readlink(PATH)  # noqa: PTH115 -- as it is written
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
    if os.readlink(PATH) != target:  # noqa: PTH115 -- somebody has set another time zone meanwhile
        _forget()
        raise OSError(errno.EAGAIN, "it has just been changed", PATH)
    _NEW.rename(PATH)


def make_link() -> bool:
    """The link is there again, where a file of `make_file` is; true then. Raises OSError."""
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
        raise OSError(errno.EINVAL, "it is no description of a time zone", PATH)
    return data


def _forget() -> None:
    """What a killed one has left."""
    _NEW.unlink(missing_ok=True)
