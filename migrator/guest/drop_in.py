# SPDX-License-Identifier: GPL-2.0-or-later
"""The drop-in that keeps systemd's services from what CRIU cannot dump, until the container's next boot.

It lies in /run: in memory, and so it moves along. Its first line says whose it is; any other file stays as it is.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

FOLDER = Path("/run/systemd/system/service.d")
PATH = FOLDER / "zz-migrator.conf"
MARK = b"# made by migrator prepare-guest\n"
# No namespaces that CRIU does not nest, and no ramfs for credentials, which LXC gives nobody: agetty keeps it open.
TEXT = MARK + b"""[Service]
ProtectHostname=no
PrivateUsers=no
PrivateIPC=no
ImportCredential=
"""
_NEW = FOLDER / ".zz-migrator"


def make() -> None:
    """Raises OSError, as where another file of that name is there."""
    if _is_there() is False:
        raise FileExistsError(errno.EEXIST, "this file is somebody else's", str(PATH))
    FOLDER.mkdir(mode=0o755, parents=True, exist_ok=True)
    _NEW.unlink(missing_ok=True)
    fd = os.open(_NEW, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        os.write(fd, TEXT)
        os.fchmod(fd, 0o644)
    finally:
        os.close(fd)
    _NEW.rename(PATH)


def remove() -> None:
    """What `make` has made; none need be there."""
    _NEW.unlink(missing_ok=True)
    if _is_there():
        PATH.unlink(missing_ok=True)


def _is_there() -> bool | None:
    """Whether the file is ours; None where there is none."""
    try:
        fd = os.open(PATH, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError:
        return False
    try:
        return os.read(fd, len(MARK)) == MARK
    finally:
        os.close(fd)
