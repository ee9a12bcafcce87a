# SPDX-License-Identifier: GPL-2.0-or-later
"""The drop-in that stops systemd giving services what CRIU cannot dump: until the container's next boot, or for good.

In /run it is in memory and moves along with it; in /etc it is on the container's disk. It is written with the rights of
the container's own root. If LXC were to mount a file of the host's there instead, the host's root would create the
mount point along a path that the container's root may have redirected by symlinks. The first line marks the file as
ours; any other file of that name is left alone.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from migrator.guest import regular_files

_PLACE = "systemd/system/service.d/zz-migrator.conf"
UNTIL_BOOT, FOR_GOOD = f"/run/{_PLACE}", f"/etc/{_PLACE}"
MARK = b"# made by migrator prepare-guest\n"
# None of the namespaces that CRIU cannot dump inside a container, and no ramfs for credentials: agetty keeps that open,
# although LXC does not pass any credentials.
TEXT = MARK + b"""[Service]
ProtectHostname=no
PrivateUsers=no
PrivateIPC=no
ImportCredential=
"""


def make(place: str) -> None:
    """Write the drop-in to `place` (UNTIL_BOOT or FOR_GOOD), replacing an earlier one of ours.

    Raises OSError, FileExistsError among them if there is a file of that name which is not ours.
    """
    path, new = _paths(place)
    if _is_there(path) is False:
        raise FileExistsError(errno.EEXIST, "there is a file of that name which migrator has not made", place)
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
    """Remove what `make` has written there, if anything. Raises OSError."""
    path, new = _paths(place)
    new.unlink(missing_ok=True)
    if _is_there(path):
        path.unlink(missing_ok=True)


def _paths(place: str) -> tuple[Path, Path]:
    """The drop-in, and its name while it is being written: systemd reads only names that end in .conf."""
    return Path(place), Path(place).with_name(".zz-migrator")


def _is_there(path: Path) -> bool | None:
    """Whether the file is ours; None if there is none."""
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
