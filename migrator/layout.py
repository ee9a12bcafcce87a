# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a migration's things lie on a host. Every name carries the migration's id, so that several run side by side.

    LXCPATH/.migrator/NAME/ID.N          read-only snapshot of round N, or what was received of it
    LXCPATH/.migrator/NAME/ID.spool/     what has arrived and is not used yet
    LXCPATH/.migrator/NAME/ID.old/       what the arriving container takes the place of
    /run/migrator/ID/                    memory images, on tmpfs while there is room
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from migrator import btrfs, holder
from migrator.errors import Busy

RUNTIME = Path("/run/migrator")
SHARED_MEMORY = Path("/dev/shm/migrator")  # noqa: S108 -- a folder of ours with mode 0711, made by root
FOLDER = ".migrator"


@dataclasses.dataclass(frozen=True)
class Layout:
    lxcpath: Path
    name: str
    id: str

    @property
    def container(self) -> Path:
        """The container's own folder."""
        return self.lxcpath / self.name

    @property
    def rootfs(self) -> Path:
        """Its root file system, on a host that it arrives at."""
        return self.container / "rootfs"

    @property
    def folder(self) -> Path:
        """Everything that migrations of this container keep on disk."""
        return self.lxcpath / FOLDER / self.name

    def snapshot(self, round: int) -> Path:
        return self.folder / f"{self.id}.{round}"

    @property
    def spool(self) -> Path:
        return self.folder / f"{self.id}.spool"

    @property
    def old(self) -> Path:
        return self.folder / f"{self.id}.old"

    def make_folder(self) -> None:
        """Create `folder`, only for root."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.parent.chmod(0o700)

    def snapshots(self) -> list[Path]:
        """The read-only snapshots of this container, of this migration and earlier ones, oldest first."""
        if not self.folder.is_dir():
            return []
        found = [path for path in self.folder.iterdir() if re.fullmatch(r"[0-9a-f]{8}\.\d+", path.name)]
        return sorted(found, key=lambda path: btrfs.info(path).generation)

    def own_snapshots(self) -> list[Path]:
        """Those of `snapshots` that this migration made."""
        return [path for path in self.snapshots() if path.name.startswith(f"{self.id}.")]

    def bases(self) -> list[btrfs.Subvolume]:
        """What increments can start from: the complete snapshots, oldest first."""
        found = [btrfs.info(path) for path in self.snapshots()]
        return [subvolume for subvolume in found if subvolume.read_only]

    def images(self) -> Path | None:
        """The folder that holds this migration's memory images, if there is one."""
        return next((path for path in self.image_folders() if path.is_dir()), None)

    def image_folders(self) -> list[Path]:
        return [RUNTIME / self.id, SHARED_MEMORY / self.id, self.folder / f"{self.id}.images"]

    def drop_images(self) -> None:
        for path in self.image_folders():
            shutil.rmtree(path, ignore_errors=True)

    def drop_spool(self) -> None:
        shutil.rmtree(self.spool, ignore_errors=True)

    def tidy(self) -> None:
        """Remove the folders that are empty now."""
        for path in (self.folder, self.folder.parent):
            with contextlib.suppress(OSError):
                path.rmdir()


def place_images(layout: Layout, needed: int) -> tuple[Path, str]:
    """Where `needed` bytes of memory images should go, and why, in words.

    Memory is the faster place, as long as what is then left of it is as much again: a restore needs the pages twice.
    """
    available = memory_available()
    if 2 * needed < available:
        for path in layout.image_folders()[:2]:
            root = path.parent.parent
            if root.is_dir() and btrfs.free_bytes(root) > needed * 5 // 4 + (16 << 20):
                return path, f"{root} has room, and {available >> 20} MiB of memory are available"
    return layout.image_folders()[2], f"only {available >> 20} MiB of memory are available"


def make_images(path: Path, mapped_root: int) -> None:
    """An empty images folder that the container's root, user id `mapped_root` on this host, can reach.

    A restored task opens images after it has become that user, but the one of the time namespace before (prepare_timens
    in criu/timens.c): then it is still root, without any privilege outside its new user namespace. So root's group may
    read too.
    """
    path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(mode=0o700)
    give_images([path], mapped_root)


def give_images(paths: Iterable[Path], mapped_root: int) -> None:
    """Let the container's root read these images, or search this folder; see `make_images`."""
    for path in paths:
        if mapped_root:
            os.chown(path, mapped_root, 0)
        path.chmod(0o750 if path.is_dir() else 0o640)


def memory_available() -> int:
    """Bytes that programs can still use without swapping (MemAvailable in proc_meminfo(5))."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


@contextlib.contextmanager
def locked(name: str, folder: Path = holder.LOCKS) -> Iterator[None]:
    """Keep other migrator commands off a container for a while; raises Busy. The lock ends with this process."""
    import fcntl

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.parent.chmod(0o711)
    fd = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            found = holder.of(name, folder)
            raise Busy(name=name, pid=found.pid if found else "?") from None
        with holder.recorded(fd):
            yield
    finally:
        os.close(fd)
