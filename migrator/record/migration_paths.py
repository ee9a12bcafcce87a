# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a migration's files are on a host. Each name carries the migration's id, so that several can run side by side.

    LXCPATH/.migrator/NAME/ID.N          read-only snapshot of round N, or what was received of it
    LXCPATH/.migrator/NAME+/ID.spool/    what has arrived and is not used yet
    LXCPATH/.migrator/NAME+/ID.old/      what the arriving container replaces
    LXCPATH/.migrator/NAME+/ID.ran.N     a container that ran here before its restore failed, or in an earlier stay
    LXCPATH/.migrator/NAME+/ID.root/     where LXC mounts its root file system for CRIU; always empty as seen by us
    LXCPATH/.migrator/NAME+/ID.folder/   the container's directory before it is put in its place, and when it goes
    LXCPATH/.migrator/NAME+/ID.images/   memory images, if memory has no room for them
    /run/migrator/ID/                    memory images, on a tmpfs of their own

Older versions kept ID.spool, ID.old and ID.images among the snapshots, and memory images in /dev/shm/migrator/ID. What
is left there of a migration begun by such a version is removed with the migration, and never read: a stream's sender
can create such files in the former place, and anybody in the latter.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from migrator.base import removal
from migrator.base.process_id import Process
from migrator.errors.this_host import Busy, JournalBroken
from migrator.host import btrfs
from migrator.record import container_lock, image_folders
from migrator.record.journal import Migration

FOLDER = ".migrator"
WORK = "+"
WATCHDOG_LIMIT = 60.0  # seconds that a watchdog may take to thaw a container and end
MOMENT_LIMIT = 1.0  # seconds that a process may take to write into its lock who it is, or to answer a question
_AT_FDCWD, _RENAME_NOREPLACE = -100, 1  # linux/fcntl.h, linux/fs.h


@dataclasses.dataclass(frozen=True)
class Layout:
    lxcpath: Path
    name: str
    id: str

    @classmethod
    def of(cls, migration: Migration) -> Layout:
        """That of a migration, under the name that its container has on this host."""
        return cls(migration.lxcpath, migration.name, migration.id)

    @property
    def container(self) -> Path:
        """The container's own directory."""
        return self.lxcpath / self.name

    @property
    def rootfs(self) -> Path:
        """Its root file system, on a host that it arrives at."""
        return self.container / "rootfs"

    @property
    def folder(self) -> Path:
        """The snapshots that migrations of this container keep, and nothing else.

        `btrfs receive` is confined to this directory, because what it reads can direct it to anything in there.
        """
        return self.lxcpath / FOLDER / self.name

    @property
    def work(self) -> Path:
        """Everything else that migrations keep on disk. No container can have such a name."""
        return self.lxcpath / FOLDER / f"{self.name}{WORK}"

    def snapshot(self, round: int) -> Path:
        return self.folder / f"{self.id}.{round}"

    @property
    def spool(self) -> Path:
        return self.work / f"{self.id}.spool"

    @property
    def former_spool(self) -> Path:
        """Where older versions had it."""
        return self.folder / self.spool.name

    @property
    def old(self) -> Path:
        return self.work / f"{self.id}.old"

    @property
    def beside(self) -> Path:
        """The container's directory while it is being made or removed, so that one in its place always has its fence.
        """
        return self.work / f"{self.id}.folder"

    def set_aside(self) -> list[Path]:
        """The root file systems of this migration that may have run here before their restore failed."""
        return sorted(self.work.glob(f"{self.id}.ran.[0-9]*")) if self.work.is_dir() else []

    def aside(self) -> Path:
        """Where the next one of these goes."""
        numbers = [int(path.name.rpartition(".")[2]) for path in self.set_aside()]
        return self.work / f"{self.id}.ran.{max(numbers, default=0) + 1}"

    def is_own_rootfs(self) -> bool:
        """Whether what is in the root file system's place was made by this migration, from one of its snapshots."""
        return self.is_own(self.rootfs)

    def is_own(self, path: Path) -> bool:
        """Whether `path` is the top of a subvolume that this migration made from one of its snapshots."""
        if not btrfs.is_subvolume(path):
            return False
        return btrfs.info(path).parent_uuid in {btrfs.info(each).uuid for each in self.own_snapshots()}

    def is_made_of(self, path: Path, number: int) -> bool:
        """Whether `path` is the top of a subvolume that was made of the snapshot of round `number`."""
        made_of = self.snapshot(number)
        return (btrfs.is_subvolume(path) and btrfs.is_subvolume(made_of)
                and btrfs.info(path).parent_uuid == btrfs.info(made_of).uuid)

    def make_folder(self) -> None:
        """Create `folder` and `work`, accessible to root only."""
        for path in (self.folder, self.work):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.parent.chmod(0o700)

    def snapshots(self) -> list[Path]:
        """The read-only snapshots of this container, oldest first: earlier migrations', then this one's.

        Its own are ordered by the number of the round, because a balance can give any of them a new generation on one
        of the hosts.
        """
        if not self.folder.is_dir():
            return []
        found = [path for path in self.folder.iterdir()
                 if re.fullmatch(r"[0-9a-f]{8}\.\d+", path.name) and btrfs.is_subvolume(path)]
        return sorted(found, key=lambda path: (1, int(path.suffix[1:])) if self._made(path)
                      else (0, btrfs.info(path).generation))

    def own_snapshots(self) -> list[Path]:
        """Those made by this migration, oldest first."""
        return [path for path in self.snapshots() if self._made(path)]

    def _made(self, snapshot: Path) -> bool:
        return snapshot.name.startswith(f"{self.id}.")

    def bases(self) -> list[btrfs.Subvolume]:
        """What increments can start from: the complete snapshots, oldest first."""
        found = [btrfs.info(path) for path in self.snapshots()]
        return [subvolume for subvolume in found if subvolume.read_only]

    def images(self) -> Path | None:
        """The directory that holds this migration's memory images, if there is one."""
        return next((path for path in self.image_folders() if path.is_dir()), None)

    def image_folders(self) -> list[Path]:
        return [image_folders.RUNTIME / self.id, self.work / f"{self.id}.images"]

    def dumped_into(self) -> list[Path]:
        """Where CRIU may be at work for this migration: `image_folders`, and where older versions had them."""
        return [*self.image_folders(), image_folders.FORMER_MEMORY / self.id, self.folder / f"{self.id}.images"]

    def drop_images(self) -> None:
        for path in [*self.image_folders(), self.folder / f"{self.id}.images"]:
            image_folders.remove_images(path)
        for path in image_folders.former_images():
            if path.name == self.id:
                image_folders.remove_images(path)

    def began_formerly(self) -> bool:
        """Whether an older version received what this migration brought, in which case it is not read any more."""
        return not self.spool.is_dir() and self.former_spool.is_dir()

    @property
    def former_old(self) -> Path:
        """What a migration begun by an older version has put aside."""
        return self.folder / f"{self.id}.old"

    def drop_beside(self) -> None:
        btrfs.delete(self.beside / "rootfs")
        removal.tree(self.beside)

    def drop_spool(self) -> None:
        for path in (self.spool, self.former_spool):
            removal.tree(path)

    def tidy(self) -> None:
        """Remove the directories that are empty now."""
        for path in (self.work, self.folder, self.folder.parent):
            with contextlib.suppress(OSError):
                path.rmdir()


def put(source: Path, target: Path) -> None:
    """Rename without ever replacing anything, not even an empty directory; raises FileExistsError (renameat2(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(source), None, str(target))


@contextlib.contextmanager
def locked(name: str, folder: Path | None = None, *, lxcpath: Path,
           needless: Callable[[], bool] = lambda: False) -> Iterator[set[Process | None]]:
    """Keep other migrator commands off a container; raises Busy. The lock ends with this process.

    A container of the same name in another LXC path is not affected: see `container_lock.files`.

    If a watchdog holds the lock, which gives the container back and ends at once, we wait for it. We also wait briefly
    for a holder that has not yet written who it is, has just let go, or answers another host, perhaps just one
    question. Yields who held the lock last (see `container_lock.recorded`), which can be more than one process if they
    spelled the LXC path differently. The files stay unless they are `needless` when the lock ends.
    """
    folder = folder or container_lock.LOCKS
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.parent.chmod(0o711)
    with contextlib.ExitStack() as stack:
        older = folder / name  # what older versions lock, for all containers of that name
        _take(stack, name, older, needless, shared=True)
        taken = [_take(stack, name, folder / file, needless) for file in container_lock.files(name, lxcpath)]
        yield {stack.enter_context(container_lock.recorded(fd, lxcpath)) for fd in taken}


def _take(stack: contextlib.ExitStack, name: str, file: Path, needless: Callable[[], bool], *,
          shared: bool = False) -> int:
    """Lock a file until the end of `stack`; raises Busy. Returns its descriptor."""
    until = time.monotonic() + MOMENT_LIMIT
    while True:
        with contextlib.ExitStack() as opened:
            fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            opened.callback(os.close, fd)
            try:
                fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError:
                found = container_lock.of_file(file)
                if (found is None or found.command in ("?", container_lock.SERVE)) and time.monotonic() < until:
                    time.sleep(0.01)
                elif not (found and found.command == container_lock.WATCHDOG
                          and container_lock.has_ended(found, WATCHDOG_LIMIT)):
                    raise Busy(name=name, pid=found.pid if found else "?") from None
                continue
            if os.fstat(fd).st_nlink:  # otherwise its holder has removed it, and the next to come will lock a new one
                opened.callback(_remove, fd, file, needless)
                stack.enter_context(opened.pop_all())
                return fd


def _remove(fd: int, file: Path, needless: Callable[[], bool]) -> None:
    """Remove a lock file that we have locked as `fd`, if it is needless and nobody shares the lock."""
    with contextlib.suppress(OSError, JournalBroken):
        if needless():
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink:  # so it exists until it is removed here
                file.unlink()
