# SPDX-License-Identifier: GPL-2.0-or-later
"""Transfers into file systems that really are full. Needs root, but not the two hosts."""

from __future__ import annotations

import io
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrator.errors.data import DiskFull, NoSpace
from migrator.host import btrfs
from migrator.record.migration_paths import Layout
from migrator.transfer import room_bounds, spool
from migrator.transfer.frames import SEGMENT_MAX
from migrator.transfer.messages import Transfer
from migrator.transfer.sender import SourceFile, send_files
from stages.steps import room
from tests.migrator.transfer.spools import arrived, handlers
from tests.migrator.wire import call, connected, listed

MIB = 1 << 20
SIZE = 256 * MIB  # of the file systems; mkfs.btrfs wants at least 109 MiB


@pytest.fixture(params=["tmpfs", "ext4", "btrfs"])
def file_system(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A small file system, mounted."""
    kind, target = request.param, tmp_path / "mounted"
    target.mkdir()
    if kind == "tmpfs":
        source, options = "tmpfs", f"size={SIZE}"
    else:
        image = tmp_path / "migrator-rig-image"  # whose loop device no other test takes for its leftover
        with image.open("wb") as file:
            file.truncate(SIZE)
        subprocess.run([f"mkfs.{kind}", "-q", image], check=True, capture_output=True)
        source, options = str(image), "loop"
    subprocess.run(["mount", "-t", kind, "-o", options, source, target], check=True)
    try:
        yield target
    finally:
        subprocess.run(["umount", target], check=True)


def free(path: Path) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


@pytest.mark.parametrize("durable", [True, pytest.param(False, marks=pytest.mark.nightly)])
def test_full_in_the_middle_and_room_made(file_system: Path, durable: bool) -> None:
    """It fills up while data arrives: the sender hears of it, and goes on when there is room."""
    ballast = file_system / "ballast"
    ballast.write_bytes(os.urandom(96 * MIB))
    os.sync()
    data = os.urandom(free(file_system) + 24 * MIB)  # ext4 keeps a twentieth for root
    with connected(handlers(file_system / "spool", durable=durable), timeout=60) as (connection, server):
        with pytest.raises(NoSpace) as caught:
            send_files(connection, Transfer(), [SourceFile("disk-1", io.BytesIO(data))])  # of a size that nobody knows
        assert str(file_system) in str(caught.value)
        taken = connection.acknowledged
        assert taken >= SEGMENT_MAX, "a window is smaller than the room there was"
        assert call(connection, "echo", still=1) == {"still": 1}
        assert not spool.is_complete(file_system / "spool/disk-1")
        shorter = data[: len(data) - 56 * MIB]
        ballast.unlink()
        os.sync()  # btrfs gives the room back with its next transaction
        result = send_files(connection, Transfer(), [SourceFile("disk-1", io.BytesIO(shorter))])
    assert server.error is None
    assert arrived(file_system / "spool/disk-1") == shorter
    assert result.resumed_bytes >= min(taken, len(shorter) // SEGMENT_MAX * SEGMENT_MAX), "of what it had acknowledged"
    assert result.resumed_bytes % SEGMENT_MAX == 0


def test_others_go_on_writing_there(file_system: Path) -> None:
    """How much has changed nobody knew, and it is more than fits: the stream ends while there still is some room."""
    data, before = os.urandom(SIZE), free(file_system)
    place = {"transfer": lambda fields: spool.receive(file_system / "spool", listed(fields["files"]),
                                                      bounds=room_bounds.OF_DISK)}
    with connected(place, timeout=60) as (connection, _), pytest.raises(NoSpace):
        send_files(connection, Transfer(), [SourceFile("disk-1", io.BytesIO(data))])
    kept = (file_system / "spool/disk-1").stat().st_size
    os.sync()
    assert kept >= (before - room_bounds.MARGIN) // 4, "of the half that it may take"
    assert free(file_system) >= kept, "for its import, and for others"


@pytest.mark.parametrize("file_system", ["btrfs"], indirect=True)
def test_what_btrfs_says_on_a_full_disk(file_system: Path, tmp_path: Path) -> None:
    """It is known by its words. The last changes of a container that stands still may take all that there is."""
    subprocess.run(["btrfs", "subvolume", "create", file_system / "rootfs"], check=True, capture_output=True)
    (file_system / "rootfs/data").write_bytes(os.urandom(96 * MIB))
    snapshot = btrfs.snapshot(file_system / "rootfs", file_system / "snapshot", read_only=True).path
    stream = bytearray()
    with btrfs.send(snapshot) as sent:
        buffer = bytearray(MIB)
        while count := sent.readinto(buffer):
            stream += buffer[:count]
    (file_system / "there").mkdir()
    (file_system / "ballast").write_bytes(os.urandom(free(file_system) - 40 * MIB))
    os.sync()
    with pytest.raises(DiskFull, match="No space left on device"):
        btrfs.receive([bytes(stream)], file_system / "there")
    btrfs.delete(file_system / "there/snapshot")


@pytest.mark.parametrize("file_system", ["btrfs"], indirect=True)
def test_what_a_broken_off_import_has_taken_is_free_again(file_system: Path) -> None:
    """Before more arrives, for which there may be no other room."""
    here = Layout(file_system, "web", "0badc0de")
    here.make_folder()
    here.spool.mkdir()
    (here.spool / "disk-1").write_bytes(os.urandom(60 * MIB))
    subprocess.run(["btrfs", "subvolume", "create", here.snapshot(1)], check=True, capture_output=True)
    (here.snapshot(1) / "data").write_bytes(os.urandom(60 * MIB))
    os.sync()
    before = free(file_system)
    room.regain(here, 1, room_bounds.MARGIN)
    assert not here.snapshot(1).exists() and free(file_system) >= before + 56 * MIB


def test_refused_before_it_begins(file_system: Path) -> None:
    size = free(file_system)
    with connected(handlers(file_system / "spool")) as (connection, _), pytest.raises(NoSpace):
        send_files(connection, Transfer(), [SourceFile("disk-1", io.BytesIO(b""), size)])
    assert not list((file_system / "spool").glob("disk*"))
