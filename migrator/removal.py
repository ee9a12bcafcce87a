# SPDX-License-Identifier: GPL-2.0-or-later
"""Remove folders that are ours, and nothing that lies in them only by a mount or in a subvolume of its own.

What is mounted somewhere below is somebody's live data, perhaps another host's too: a share, a bind mount. As neither
the device tells a bind mount nor the mount a subvolume, both are looked at, of what was opened and not of its name
(mnt_id in proc_pid_fdinfo(5)).
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from migrator import log

_FOLDER = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def tree(path: Path, *, mounted: bool = False) -> list[Path]:
    """Remove a folder, or file, with all that is in it on the same mount and in the same subvolume; none need be there.

    Where it is `mounted` itself, as images in memory are, what it holds goes. Returns what is left, after a warning.
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
    log.warning(f"Left alone, as it is mounted there, a subvolume, in use, or not migrator's: {shown}")


def is_mounted(path: Path) -> bool:
    """Whether something is mounted on a folder, also of the same file system; False where there is none."""
    try:
        with _opened(path.parent) as parent, _opened(path.name, parent, os.O_PATH) as folder:
            return _mount(parent) != _mount(folder)
    except (FileNotFoundError, NotADirectoryError):
        return False


def mounts_in(path: Path) -> list[str]:
    """What is mounted at `path` or below, whatever subvolumes are between: the kernel detaches it with a subvolume.

    As this process's own mount namespace has it. What is mounted in another one alone, as a container's, is not seen.
    """
    place, found = os.fsencode(os.path.realpath(path)), []
    for line in filter(None, Path("/proc/self/mountinfo").read_bytes().split(b"\n")):  # a name may have other ends
        target = re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), line.split(b" ")[4])
        if target == place or target.startswith(place + b"/"):
            found.append(os.fsdecode(target))
    return found


@contextlib.contextmanager
def _opened(path: Path | str, parent: int | None = None, how: int = os.O_RDONLY) -> Iterator[int]:
    fd = os.open(path, how | (_FOLDER if parent is not None else os.O_DIRECTORY | os.O_CLOEXEC), dir_fd=parent)
    try:
        yield fd
    finally:
        os.close(fd)


def _differ(parent: int, folder: int) -> bool:
    """The mount first: a share that does not answer is not asked."""
    return _mount(parent) != _mount(folder) or os.fstat(parent).st_dev != os.fstat(folder).st_dev


def _mount(fd: int) -> str:
    lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    return next(line for line in lines if line.startswith("mnt_id:"))


def _remove(parent: int, path: Path, left: list[Path]) -> None:
    """What is called `path.name` in the folder `parent`; raises OSError."""
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
