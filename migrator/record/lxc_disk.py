# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether the disk that an LXC path lies on is there: what is not to be seen was removed only if it is.

A mount that has failed, or is late (`nofail`), a volume that nobody has unlocked yet, an `umount` for a check: then an
empty folder stands there, or another disk, and shows neither the container nor the mark that it has run. What tells is
the spool of the migration, which is kept below the LXC path until the migration has ended here, and which nothing of
LXC's removes along with a container. It is looked for in the very folder that the container is looked for in, held open
meanwhile: so nothing that is mounted between the two looks makes them disagree. Nor is what is concluded from several
looks concluded before the disk was seen to be there behind the last of them: see `held`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from migrator.errors.containers import DiskAway
from migrator.record.migration_paths import Layout
from migrator.record.next_commands import this_host


def require(layout: Layout) -> None:
    """Raises DiskAway unless what this migration, which has not ended here, keeps below its LXC path is there."""
    with _opened(layout):
        pass


@contextlib.contextmanager
def held(layout: Layout) -> Iterator[None]:
    """For a block that looks at more, and from which something is concluded: the disk stays there until its end.

    A folder that is open keeps its file system from being unmounted (EBUSY in umount(2)). Raises DiskAway as `require`,
    and at the end where another folder has its path by now: `umount -l` asks nobody, and one may be mounted over it.
    """
    with _opened(layout) as folder:
        yield
        try:
            same = os.path.samestat(layout.lxcpath.stat(), os.fstat(folder))
        except OSError as error:
            raise _away(layout, str(error)) from error
        if not same:
            raise _away(layout, "it has been unmounted, or another is mounted over it")


def is_here(layout: Layout) -> bool:
    """The same as an answer; also False once the migration has ended, and what it has kept was removed."""
    try:
        require(layout)
    except DiskAway:
        return False
    return True


def is_removed(layout: Layout) -> bool:
    """Whether LXC knows no container in its place any more: destroyed, say, or renamed.

    Raises DiskAway where that cannot be told. A link may lead to a disk that is not mounted yet: that is there.
    """
    if os.path.lexists(layout.container / "config"):
        return False
    with _opened(layout) as folder:
        return not _is_in(folder, layout.container / "config", layout)


def of(lxcpath: Path) -> str:
    """Which file system an LXC path lies on, and which subvolume of btrfs: its f_fsid (statvfs(3)); raises OSError.

    It is the same whenever and wherever that is mounted (btrfs_statfs in the kernel's fs/btrfs/super.c).
    """
    return f"{os.statvfs(lxcpath).f_fsid:x}"


def require_same(layout: Layout, disk: str | None) -> None:
    """Raises DiskAway where the LXC path lies on another file system than `disk`, as `of` has told it; None: not known.

    To be asked before a spool is made. Once one is made on what lies below a mount point, it says that the disk is
    there whenever it is not.
    """
    try:
        found = of(layout.lxcpath)
    except OSError as error:
        raise _away(layout, str(error)) from error
    if disk not in (None, found):
        raise _away(layout, "the migration has begun on another file system")


def require_ended(layout: Layout, disk: str | None) -> None:
    """Where the migration has ended here, and its spool is gone with that: raises DiskAway as `require_same`.

    Unless somebody has made a spool, which says that the disk is lost for good.
    """
    if not is_here(layout):
        require_same(layout, disk)


def has_ended(layout: Layout, disk: str | None) -> bool:
    """Whether the spool has gone with the migration's end here, for one of which the journal does not say that it has
    ended, as an older one: its LXC path lies on the same `disk` as ever.
    """
    if is_here(layout) or disk is None:
        return False
    with contextlib.suppress(OSError):
        return of(layout.lxcpath) == disk
    return False


@contextlib.contextmanager
def _opened(layout: Layout) -> Iterator[int]:
    """The LXC path; raises DiskAway unless it has the spool of the migration, or an older version's, in it."""
    try:
        folder = os.open(layout.lxcpath, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _away(layout, str(error)) from error
    try:
        if not any(_is_in(folder, path, layout) for path in (layout.spool, layout.former_spool)):
            raise _away(layout, f"{layout.spool} is missing")
        yield folder
    finally:
        os.close(folder)


def _is_in(folder: int, path: Path, layout: Layout) -> bool:
    try:
        os.lstat(path.relative_to(layout.lxcpath), dir_fd=folder)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:  # a disk that cannot be read says nothing about what is on it
        raise _away(layout, str(error)) from error
    return True


def _away(layout: Layout, reason: str) -> DiskAway:
    return DiskAway(name=layout.name, host_name=this_host(), lxcpath=layout.lxcpath, reason=reason, spool=layout.spool,
                    otherwise=f"Only if that disk is lost for good, with whatever {layout.name} has done there, tell"
                              f" that host so: mkdir -p {layout.spool}")
