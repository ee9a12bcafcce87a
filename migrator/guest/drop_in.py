# SPDX-License-Identifier: GPL-2.0-or-later
"""The drop-in that keeps systemd's services from what CRIU cannot dump: until the container's next boot, or for good.

In /run it lies in memory, and so it moves along; in /etc on the container's disk. The container's own root puts it
there: to have LXC mount one of the host's would be to have the host's root make a file on a way that the container's
root may have bent. Its first line says whose it is; any other file stays as it is.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from migrator.guest import regular_files

_PLACE = "systemd/system/service.d/zz-migrator.conf"
UNTIL_BOOT, FOR_GOOD = f"/run/{_PLACE}", f"/etc/{_PLACE}"
MARK = b"# made by migrator prepare-guest\n"
# No namespaces that CRIU does not nest, and no ramfs for credentials, which LXC gives nobody: agetty keeps it open.
TEXT = MARK + b"""[Service]
ProtectHostname=no
PrivateUsers=no
PrivateIPC=no
ImportCredential=
"""


def make(place: str) -> None:
    """Raises OSError, as where another file of that name is there."""
    path, new = _paths(place)
    if _is_there(path) is False:
        raise FileExistsError(errno.EEXIST, "this file is somebody else's", place)
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    new.unlink(missing_ok=True)
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        os.write(fd, TEXT)
        os.fchmod(fd, 0o644)
        os.fsync(fd)
    finally:
        os.close(fd)
    new.rename(path)


def remove(place: str) -> None:
    """What `make` has made; none need be there."""
    path, new = _paths(place)
    new.unlink(missing_ok=True)
    if _is_there(path):
        path.unlink(missing_ok=True)


def _paths(place: str) -> tuple[Path, Path]:
    """The file, and how it is called while it is written; systemd reads what ends in .conf."""
    return Path(place), Path(place).with_name(".zz-migrator")


def _is_there(path: Path) -> bool | None:
    """Whether the file is ours; None where there is none."""
    try:
        fd = regular_files.opened(str(path))
    except FileNotFoundError:
        return None
    except OSError:
        return False
    try:
        return os.read(fd, len(MARK)) == MARK
    finally:
        os.close(fd)
