# SPDX-License-Identifier: GPL-2.0-or-later
"""Removes directories of ours, but nothing in them that is there only through a mount or in a subvolume of its own.

What is mounted somewhere below is someone's live data, perhaps another host's too: a share, a bind mount. Because the
device number does not reveal a bind mount, nor the mount a subvolume, both are checked, and on what was opened rather
than on its name (mnt_id in proc_pid_fdinfo(5)).
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from migrator.base import log

_FOLDER = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def tree(path: Path, *, mounted: bool = False) -> list[Path]:
    """Remove a directory or file with all that is in it on the same mount and in the same subvolume; it need not exist.

    If it is itself `mounted`, as images in memory are, its contents are removed. Returns what is left, after a warning.
    """
    left: list[Path] = []
    with contextlib.suppress(FileNotFoundError), _opened(path.parent) as parent:
        try:
            if mounted:
                with _opened(path.name, parent) as folder:
                    _empty(folder, path, left)
                os.rmdir(path.name, dir_fd=parent)
            else:
                _remove(parent, path, left)
        except FileNotFoundError:
            pass
        except (OSError, RecursionError):
            left.append(path)
    if left and not mounted:
        tell(left)
    return left


def tell(left: list[Path]) -> None:
    """Warn of what was not removed."""
    shown = ", ".join(map(repr, map(str, left[:3]))) + (", ..." if left[3:] else "")
    log.warning(f"Left alone, as it is a mount, a subvolume, in use, or not migrator's: {shown}")


def is_mounted(path: Path) -> bool:
    """Whether something is mounted on a directory, even of the same file system; False if it does not exist."""
    try:
        with _opened(path.parent) as parent, _opened(path.name, parent, os.O_PATH) as folder:
            return _mount(parent) != _mount(folder)
    except (FileNotFoundError, NotADirectoryError):
        return False


def mounts_in(path: Path) -> list[str]:
    """What is mounted at `path` or below, whatever subvolumes are in between: the kernel detaches it with a subvolume.

    Even through another mount of the file system, where the same directory has another path. Seen from this process's
    own mount namespace. What is mounted only in another one, a container's for example, is not seen.
    """
    place, mounts = os.fsencode(os.path.realpath(path)), _mounts()
    its = None
    with contextlib.suppress(OSError), _opened(os.fsdecode(place), how=os.O_PATH) as folder:
        its = mounts.get(_mount(folder).split()[1].encode())
    found = []
    for each in mounts.values():
        above = mounts.get(each.parent)
        if _is_below(each.target, place) or (
                its and above and above.device == its.device and _is_below(each.target, above.target)
                and _is_below(above.inside(each.target), its.inside(place))):
            found.append(os.fsdecode(each.target))
    return found


class _Mount(NamedTuple):
    """A line of proc_pid_mountinfo(5)."""

    parent: bytes
    device: bytes  # of the file system: a subvolume has none of its own there
    root: bytes
    target: bytes

    def inside(self, place: bytes) -> bytes:
        """The path, within its file system, of what is at `place` on this mount."""
        return self.root.rstrip(b"/") + place[len(self.target.rstrip(b"/")):]


def _mounts() -> dict[bytes, _Mount]:
    found = {}
    # A name may contain other line separators.
    for line in filter(None, Path("/proc/self/mountinfo").read_bytes().split(b"\n")):
        id_, *words = (re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), word)
                       for word in line.split(b" ")[:5])
        found[id_] = _Mount(*words)
    return found


def _is_below(place: bytes, folder: bytes) -> bool:
    return place == folder or place.startswith(folder.rstrip(b"/") + b"/")


@contextlib.contextmanager
def _opened(path: Path | str, parent: int | None = None, how: int = os.O_RDONLY) -> Iterator[int]:
    fd = os.open(path, how | (_FOLDER if parent is not None else os.O_DIRECTORY | os.O_CLOEXEC), dir_fd=parent)
    try:
        yield fd
    finally:
        os.close(fd)


def _differ(parent: int, folder: int) -> bool:
    """The mount is compared first, so that a share that does not answer is not asked."""
    return _mount(parent) != _mount(folder) or os.fstat(parent).st_dev != os.fstat(folder).st_dev


def _mount(fd: int) -> str:
    lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    return next(line for line in lines if line.startswith("mnt_id:"))


def _remove(parent: int, path: Path, left: list[Path]) -> None:
    """What is called `path.name` in the directory `parent`; raises OSError."""
    before = len(left)
    try:
        with _opened(path.name, parent, os.O_PATH) as folder:
            if _differ(parent, folder):
                left.append(path)
            else:
                with _opened(".", folder) as inside:
                    _empty(inside, path, left)
    except NotADirectoryError:
        os.unlink(path.name, dir_fd=parent)  # a mounted file is busy
        return
    if len(left) == before:
        os.rmdir(path.name, dir_fd=parent)


def _empty(folder: int, path: Path, left: list[Path]) -> None:
    for name in os.listdir(folder):
        try:
            _remove(folder, path / name, left)
        except FileNotFoundError:
            pass
        except OSError:
            left.append(path / name)
