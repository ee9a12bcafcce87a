# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether the disk of an LXC path is there: something that cannot be seen was removed only if it is.

A mount may have failed or be late (`nofail`), a volume may not have been unlocked yet, someone may have unmounted it
for a check: then there is an empty directory, or another disk, with neither the container nor the mark that it ran.
What tells is the migration's spool, which is kept below the LXC path until the migration has ended here, and which LXC
never removes along with a container. It is looked for in the very directory that the container is looked for in, which
is kept open meanwhile, so that nothing mounted between the two looks makes them disagree. For the same reason, nothing
is concluded from several looks before the disk was seen to be there after the last of them: see `held`.
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
    """Raise DiskAway unless what this unfinished migration keeps below its LXC path is there."""
    with _opened(layout):
        pass


@contextlib.contextmanager
def held(layout: Layout) -> Iterator[None]:
    """For a block that looks at several things and draws a conclusion: the disk stays there until its end.

    An open directory keeps its file system from being unmounted (EBUSY in umount(2)). Raises DiskAway as `require`
    does, and also at the end if another directory has the path by then: `umount -l` asks nobody, and a disk may get
    mounted over it.
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
    """As `require`, as an answer; also False once the migration has ended and what it kept was removed."""
    try:
        require(layout)
    except DiskAway:
        return False
    return True


def is_removed(layout: Layout) -> bool:
    """Whether LXC no longer knows a container in its place: destroyed, say, or renamed.

    Raises DiskAway if that cannot be determined. A symlink may lead to a disk that is not mounted yet: that counts as
    there.
    """
    if os.path.lexists(layout.container / "config"):
        return False
    with _opened(layout) as folder:
        return not _is_in(folder, layout.container / "config", layout)


def of(lxcpath: Path) -> str:
    """Identifies the file system of an LXC path, and on btrfs the subvolume: its f_fsid (statvfs(3)); raises OSError.

    It is the same whenever and wherever that is mounted (btrfs_statfs in the kernel's fs/btrfs/super.c).
    """
    return f"{os.statvfs(lxcpath).f_fsid:x}"


def require_same(layout: Layout, disk: str | None) -> None:
    """Raise DiskAway if the LXC path is on a file system other than `disk`, a result of `of`; None: not known.

    Ask before a spool is created: one created on what is below a mount point would say that the disk is there whenever
    it is not.
    """
    try:
        found = of(layout.lxcpath)
    except OSError as error:
        raise _away(layout, str(error)) from error
    if disk not in (None, found):
        raise _away(layout, "the migration has begun on another file system")


def require_ended(layout: Layout, disk: str | None) -> None:
    """For a migration that has ended here, along with its spool: raise DiskAway as `require_same` does.

    Unless someone has created a spool, which declares that the disk is lost for good.
    """
    if not is_here(layout):
        require_same(layout, disk)


def has_ended(layout: Layout, disk: str | None) -> bool:
    """Whether the spool went with the migration's end here, although an older journal does not have it as ended.

    That is so if its LXC path is on the same `disk` as ever.
    """
    if is_here(layout) or disk is None:
        return False
    with contextlib.suppress(OSError):
        return of(layout.lxcpath) == disk
    return False


@contextlib.contextmanager
def _opened(layout: Layout) -> Iterator[int]:
    """The LXC path, opened; raises DiskAway unless it contains the spool of the migration, or an older version's."""
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
