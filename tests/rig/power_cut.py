# SPDX-License-Identifier: GPL-2.0-or-later
"""A destination whose power is cut, on a btrfs of its own: what is left is what had been written to its disk by then.

To be run in a mount namespace of its own: python -m tests.rig.power_cut FOLDER CASE. It prints what a rollback keeps
after that, and how many files of it are not as they were sent.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from migrator.host import btrfs, lxc
from migrator.host.btrfs import Subvolume
from migrator.record import container_lock, lxc_disk
from migrator.record.journal import Journal, Migration
from migrator.record.migration_paths import Layout
from migrator.record.states import Event, Role
from migrator.transfer import received_snapshot, spool
from stages.steps import abandon, import_round, restore_here
from stages.steps.standstill import INCREMENT

ID = "0badc0de"
SIZE = 256 << 20  # bytes of each file system
FILES = 60  # so few are still in memory alone when all have been received
instead = pytest.MonkeyPatch()


class PowerCut(BaseException):
    pass


class Disk:
    """A file with a btrfs in it, mounted."""

    def __init__(self, folder: Path, name: str) -> None:
        self.image, self.mounted = folder / f"{name}.img", folder / name
        with self.image.open("wb") as file:
            file.truncate(SIZE)
        subprocess.run(["mkfs.btrfs", "-q", self.image], check=True, capture_output=True)
        self.mounted.mkdir()
        self.mount(self.image)

    def mount(self, image: Path) -> None:
        subprocess.run(["mount", "-t", "btrfs", "-o", "loop", image, self.mounted], check=True)

    def cut(self) -> None:
        """What the kernel has not written yet is lost."""
        left = self.image.with_suffix(".left")
        subprocess.run(["cp", "--sparse=always", self.image, left], check=True)
        self.unmount()
        self.mount(left)

    def unmount(self) -> None:
        subprocess.run(["umount", self.mounted], check=True)


def stream(snapshot: Path, parent: Path | None = None) -> bytes:
    sent, buffer = bytearray(), bytearray(1 << 20)
    with btrfs.send(snapshot, parent) as file:
        while count := file.readinto(buffer):
            sent += buffer[:count]
    return bytes(sent)


class Hosts:
    """A source with a root file system and its snapshots; a destination, and what has arrived in its spool."""

    def __init__(self, folder: Path) -> None:
        self.source, self.destination = Disk(folder, "a"), Disk(folder, "b")
        self.rootfs = self.source.mounted / "rootfs"
        subprocess.run(["btrfs", "-q", "subvolume", "create", self.rootfs], check=True)
        self.sent = Layout(self.source.mounted, "web", ID)
        self.here = Layout(self.destination.mounted, "web", ID)
        for layout in (self.sent, self.here):
            layout.make_folder()
        self.here.spool.mkdir()
        self.arrived: dict[str, bytes] = {}
        self.journal = Journal(folder / "journal.db")
        self.migration: Migration = self.journal.create(
            id=ID, role=Role.DESTINATION, name="web", lxcpath=self.here.lxcpath, peer="hosta", event=Event.RECEIVE,
            rounds=[], other_name="web", origin=ID, mapped_root=0, disk=lxc_disk.of(self.here.lxcpath), ticket="t",
            memory=False)

    def verified(self, file: Path) -> Iterator[memoryview]:
        yield memoryview(self.arrived[file.name])

    def snapshot(self, number: int, name: str) -> Subvolume:
        """One more of the source's, with new files; its stream arrives as `name`."""
        for file in range(FILES):
            (self.rootfs / f"{number}-{file}").write_bytes(os.urandom(200_000))
        made = btrfs.snapshot(self.rootfs, self.sent.snapshot(number), read_only=True)
        self.arrived[name] = stream(made.path, self.sent.snapshot(number - 1) if number > 1 else None)
        return made

    def round(self) -> None:
        made = self.snapshot(1, "disk-1")
        self.migration.move(Event.RECEIVED, rounds=[{"uuid": made.uuid}])
        import_round.import_round(self.migration, self.here)

    def handed_over(self) -> None:
        made = self.snapshot(2, INCREMENT)
        for event in (Event.RECEIVE_DUMP, Event.DUMP_RECEIVED, Event.OWN):
            self.migration.move(event, increment_uuid=made.uuid)

    def restore(self) -> None:
        self.here.container.mkdir()
        restore_here.Restore(self.migration, 600.0, leave=lambda: 0.0)._apply(None)


def cut(*_: object, **__: object) -> str:
    raise PowerCut


def at_import(hosts: Hosts) -> None:
    """Right behind the receive of a round, before its sync."""
    instead.setattr(import_round, "define", cut)
    hosts.round()


def at_handover(hosts: Hosts) -> None:
    """The increment was received while the images arrived, and the restore has not come to its disk."""
    hosts.round()
    hosts.handed_over()
    received_snapshot.receive(hosts.verified(Path(INCREMENT)), hosts.here.snapshot(2), hosts.here.spool)
    raise PowerCut


def before_rootfs(hosts: Hosts) -> None:
    hosts.round()
    hosts.handed_over()
    instead.setattr(restore_here, "put_rootfs_aside", cut)
    hosts.restore()


def after_import(hosts: Hosts) -> None:
    hosts.round()
    raise PowerCut


def after_rootfs(hosts: Hosts) -> None:
    """Nobody has synced it: to make a root file system of it has brought it to the disk."""
    hosts.round()
    hosts.handed_over()
    hosts.restore()
    raise PowerCut


CASES: dict[str, Callable[[Hosts], None]] = {
    each.__name__: each for each in (at_import, at_handover, before_rootfs, after_import, after_rootfs)}


def main(folder: Path, case: str) -> None:
    container_lock.LOCKS = folder / "locks"
    for module, name in ((import_round, "define"), (restore_here, "put_rootfs_aside"), (lxc, "Container")):
        instead.setattr(module, name, lambda *_: "")  # nothing here has to do with LXC
    hosts = Hosts(folder)
    instead.setattr(spool, "verified", hosts.verified)
    try:
        CASES[case](hosts)
    except PowerCut:
        hosts.destination.cut()
    hosts.migration.refresh()
    held = [btrfs.info(path).uuid for path in hosts.sent.own_snapshots()]
    abandon._abandon(hosts.migration, held)
    wrong = [file.name for name in hosts.migration.copy.kept for file in (hosts.sent.folder / name).iterdir()
             if file.read_bytes() != (hosts.here.folder / name / file.name).read_bytes()]
    print(json.dumps({"kept": hosts.migration.copy.kept, "wrong": len(wrong)}))
    for disk in (hosts.source, hosts.destination):
        disk.unmount()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
