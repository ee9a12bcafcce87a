# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a migration's things lie, and the lock that keeps commands off each other's containers."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from migrator.base import names
from migrator.errors.containers import InvalidName
from migrator.errors.this_host import Busy
from migrator.record import container_lock, image_folders
from migrator.record.container_lock import Holder
from migrator.record.migration_paths import Layout, locked
from migrator.transfer import spool
from tests.migrator.layouts import here  # noqa: F401 -- a fixture


def test_every_name_carries_the_id() -> None:
    made = Layout(Path("/pool"), "web", "0badc0de")
    other = Layout(Path("/pool"), "web", "00000001")
    for path in (made.snapshot(3), made.spool, made.old, *made.image_folders()):
        assert "0badc0de" in str(path)
    assert made.snapshot(3) == Path("/pool/.migrator/web/0badc0de.3")
    assert not {made.spool, made.old, *made.image_folders()} & {other.spool, other.old, *other.image_folders()}


def test_where_streams_are_received_there_is_nothing_but_snapshots() -> None:
    """A stream that somebody has made can write into what lies beside the subvolume that it becomes."""
    made = Layout(Path("/pool"), "web", "0badc0de")
    for path in (made.spool, made.old, made.container, *made.image_folders()):
        assert not path.is_relative_to(made.folder)
    with pytest.raises(InvalidName):
        names.container_name(made.work.name)


def test_the_folder_is_closed_to_others(here: Layout) -> None:
    old = os.umask(0)
    try:
        here.make_folder()
        here.make_folder()
    finally:
        os.umask(old)
    assert stat.S_IMODE(here.folder.stat().st_mode) == stat.S_IMODE(here.work.stat().st_mode) == 0o700
    assert stat.S_IMODE(here.folder.parent.stat().st_mode) == 0o700


def test_snapshots_are_told_from_the_rest(here: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    assert here.snapshots() == []
    here.make_folder()
    ages = {"00000001.1": 11, "00000003.1": 7, "0badc0de.1": 9, "0badc0de.2": 8, "0badc0de.10": 10}
    for name in (*ages, "0badc0de.spool", "0badc0de.old", "0badc0de.images", "notes.1", "0badc0de.1.bak", "00000002.1"):
        (here.folder / name).mkdir()

    class Info:
        def __init__(self, path: Path) -> None:
            self.generation = ages[path.name]

    monkeypatch.setattr("migrator.host.btrfs.info", Info)
    monkeypatch.setattr("migrator.host.btrfs.is_subvolume", lambda path: path.name in ages)
    own = ["0badc0de.1", "0badc0de.2", "0badc0de.10"]
    assert [path.name for path in here.snapshots()] == ["00000003.1", "00000001.1", *own]
    assert [path.name for path in here.own_snapshots()] == own


@pytest.mark.parametrize(("needed", "memory", "place"), [(100, 1000, 0), (427, 1000, 0), (0, 1000, 0), (428, 1000, 1),
                                                         (600, 1000, 1)])  # the restore needs the pages a second time
def test_images_go_where_there_is_room(here: Layout, monkeypatch: pytest.MonkeyPatch, needed: int, memory: int,
                                       place: int) -> None:
    monkeypatch.setattr(image_folders, "memory_available", lambda: memory << 20)
    path, why = image_folders.place_images(here.image_folders(), needed << 20)
    assert path == here.image_folders()[place]
    assert f"{memory} MiB" in why


def test_image_folders_are_made_and_dropped(here: Layout) -> None:
    assert here.images() is None
    for path in here.image_folders():
        image_folders.make_images(path, 1 << 20)
        (path / "pages-1.img").write_text("old")
        image_folders.make_images(path, 1 << 20)  # begins by removing its leftovers
        assert list(path.iterdir()) == []
        found = path.stat()
        assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (os.geteuid(), 0o700), "nobody can plant a link there"
        # The container's root has to come through here.
        assert stat.S_IMODE(path.parent.stat().st_mode) & 0o011 == 0o011
        assert here.images() == path
        here.drop_images()
        assert here.images() is None and not path.exists()
        here.drop_images()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount; everybody else gets the plain folder above")
def test_images_in_memory_are_on_a_tmpfs_of_their_own(here: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """What anybody else may have made in a place that is open to all, such as /dev/shm, is never used."""
    monkeypatch.setattr(image_folders, "memory_available", lambda: 200 << 20)
    path = here.image_folders()[0]
    outside = here.lxcpath / "secret"
    outside.mkdir()
    (outside / "kept").touch()
    path.parent.mkdir(parents=True)
    path.symlink_to(outside)  # as if somebody had been here first
    with pytest.raises(OSError, match="exists"):
        image_folders.make_images(path, 1 << 20)
    assert list(outside.iterdir()) == [outside / "kept"]
    path.unlink()
    image_folders.make_images(path, 1 << 20)
    try:
        (line,) = [each for each in Path("/proc/self/mountinfo").read_text().splitlines() if f" {path} " in each]
        before, _, after = line.partition(" - ")
        assert {"nosuid", "nodev"} <= set(before.split()[5].split(","))
        assert after.split()[:2] == ["tmpfs", "migrator"]
        found = os.statvfs(path)
        assert found.f_blocks * found.f_frsize == 100 << 20
        assert 2 * spool.FOLDER_MAX < found.f_files <= 3 * spool.FOLDER_MAX
        with (path / "lxc.log").open("w"):  # as a monitor of LXC's keeps it
            here.drop_images()
            assert not path.exists()
    finally:
        here.drop_images()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_the_containers_root_reads_images_and_cannot_change_them(here: Layout) -> None:
    """A user of the host may have the same id, and images are checked before they are used."""
    _, path = here.image_folders()
    image_folders.make_images(path, 1 << 20)
    image = path / "core-1.img"
    image.touch(mode=0o600)
    image_folders.give_images(path, [image], 100000)
    assert [(each.stat().st_uid, each.stat().st_gid, stat.S_IMODE(each.stat().st_mode)) for each in (path, image)] == [
        (0, 100000, 0o750), (0, 100000, 0o640)]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_migrations_side_by_side_share_memory(here: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is used of it yet when the second one begins; each takes what it has announced and half of that more."""
    monkeypatch.setattr(image_folders, "memory_available", lambda: 8000 << 20)
    other = Layout(here.lxcpath, here.name, "89abcdef")
    try:
        path, _ = image_folders.place_images(here.image_folders(), 1000 << 20)
        image_folders.make_images(path, 1000 << 20)
        found = os.statvfs(path)
        assert found.f_blocks * found.f_frsize == 1500 << 20
        assert image_folders.memory_promised() == 3000 << 20, "it arrives there, and is restored from there"
        assert image_folders.place_images(other.image_folders(), 2000 << 20)[0] == other.image_folders()[0]
        assert image_folders.place_images(other.image_folders(), 3000 << 20)[0] == other.image_folders()[1]
        image_folders.make_images(other.image_folders()[0], -1)
        assert os.statvfs(other.image_folders()[0]).f_blocks, "a nonsense size does not make it boundless"
    finally:
        here.drop_images()
        other.drop_images()


def test_only_empty_folders_are_tidied_away(here: Layout) -> None:
    here.make_folder()
    here.spool.mkdir()
    here.tidy()
    assert here.spool.is_dir()
    here.drop_spool()
    here.tidy()
    assert not here.folder.parent.exists()
    assert here.lxcpath.is_dir()


def test_memory_available_is_what_the_kernel_says() -> None:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < image_folders.memory_available() <= total


# --- the lock -------------------------------------------------------------------------------------------------

POOL = Path("/pool")
HOLDER = """
import sys
from pathlib import Path
from migrator.record.migration_paths import locked
with locked("web", Path(sys.argv[1]), lxcpath=Path("/pool")):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_one_command_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "lock"
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdout.readline() == "locked\n"
        with pytest.raises(Busy, match=f"process {holder.pid}"), locked("web", folder, lxcpath=POOL):
            pass
        with locked("db", folder, lxcpath=POOL):  # another container
            pass
        holder.kill()
    with locked("web", folder, lxcpath=POOL):  # it ended with its process, however that ended
        pass
    with locked("web", folder, lxcpath=POOL):
        pass


def test_locks_are_only_for_root(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with locked("web", tmp_path / "run" / "lock", lxcpath=POOL):
            assert stat.S_IMODE((tmp_path / "run" / "lock").stat().st_mode) == 0o700
            files = list((tmp_path / "run" / "lock").iterdir())
            assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600} and len(files) > 1
    finally:
        os.umask(before)


def test_a_watchdog_is_waited_for(tmp_path: Path) -> None:
    """It gives a container back whose program was killed: who types the next command at once need not type it again."""
    folder = tmp_path / "lock"
    command = [sys.executable, "-c", HOLDER.replace("sys.argv[1]", "sys.argv[2]"), container_lock.WATCHDOG, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as watchdog:
        assert watchdog.stdout and watchdog.stdin and watchdog.stdout.readline() == "locked\n"
        ends = threading.Timer(0.2, watchdog.stdin.close)
        ends.start()
        with locked("web", folder, lxcpath=POOL):
            assert watchdog.wait() == 0
        ends.join()


def test_who_has_not_yet_said_what_it_is_may_be_a_watchdog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock was given back, or taken, at this very moment: neither is another command at work, nor is a question."""
    seen: list[Holder | None] = [None, Holder(1, 1, "?"), Holder(1, 1, "serve"), None]
    with (tmp_path / "web").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        def of_file(_: Path) -> Holder | None:
            found = seen.pop(0)
            if not seen:
                fcntl.flock(lock, fcntl.LOCK_UN)
            return found

        monkeypatch.setattr(container_lock, "of_file", of_file)
        with locked("web", tmp_path, lxcpath=POOL):
            assert not seen


def test_just_twice_is_too_little(here: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 2 % and the margin that spool.check_space asks for: 166 MiB each time."""
    monkeypatch.setattr(image_folders, "memory_available", lambda: 332 << 20)
    assert image_folders.place_images(here.image_folders(), (100 << 20) - 1)[0] == here.image_folders()[0]
    assert image_folders.place_images(here.image_folders(), 100 << 20)[0] == here.image_folders()[1]
    assert image_folders.place_images(here.image_folders(), 50 << 20, 231 << 20)[0] == here.image_folders()[0], (
        "of what its cgroup may have")
    assert image_folders.place_images(here.image_folders(), 50 << 20, 230 << 20) == (
        here.image_folders()[1], "only 230 MiB of memory are available")
    monkeypatch.setattr(image_folders, "memory_available", lambda: (128 << 20) + 99)
    assert image_folders.place_images(here.image_folders(), 49)[0] == here.image_folders()[0], "in whole bytes"
    monkeypatch.setattr(image_folders, "memory_promised", lambda: 400 << 20)
    assert image_folders.place_images(here.image_folders(), 1)[1] == "only 0 MiB of memory are available"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
@pytest.mark.parametrize("available", [1, 114, 127, 128, 129, 131, 300, 333, 600, 5000])
@pytest.mark.parametrize("needed", [0, 1, 100])
def test_what_goes_to_memory_has_room_there(here: Layout, monkeypatch: pytest.MonkeyPatch, needed: int,
                                            available: int) -> None:
    """With many migrations at a time little is left for each: too little was taken, and the move refused for that."""
    monkeypatch.setattr(image_folders, "memory_available", lambda: available << 20)
    monkeypatch.setattr(image_folders, "memory_promised", lambda: 0)
    path, _ = image_folders.place_images(here.image_folders(), needed << 20)
    if path != here.image_folders()[0]:
        return
    try:
        image_folders.make_images(path, needed << 20)
        spool.check_space(path, needed << 20)
    finally:
        image_folders.remove_images(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_no_link_gives_a_file_elsewhere_away(here: Layout) -> None:
    outside = here.lxcpath / "secret"
    outside.touch(mode=0o600)
    path = here.image_folders()[1]
    image_folders.make_images(path, 1)
    (path / "core-1.img").symlink_to(outside)
    image_folders.give_images(path, [path / "core-1.img"], 100000)
    assert outside.stat().st_gid == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_without_a_group_they_stay_roots(here: Layout) -> None:
    path = here.image_folders()[1]
    image_folders.make_images(path, 1)
    (path / "core-1.img").touch(mode=0o600)
    image_folders.give_images(path, [path / "core-1.img"], 0)
    assert (path / "core-1.img").stat().st_gid == path.stat().st_gid == 0
    assert stat.S_IMODE((path / "core-1.img").stat().st_mode) == 0o640


@pytest.mark.parametrize(("parent", "ours"), [("of round 2", True), ("of another's", False), ("", False)])
def test_whose_root_file_system_it_is(here: Layout, monkeypatch: pytest.MonkeyPatch, parent: str, ours: bool) -> None:
    """By what it is a snapshot of, whatever it is called; a plain folder is somebody else's."""
    here.make_folder()
    for path in (here.rootfs, here.snapshot(1), here.snapshot(2), here.folder / "00000001.1"):
        path.mkdir(parents=True)
    uuids = {"0badc0de.1": "of round 1", "0badc0de.2": "of round 2", "00000001.1": "of another's", "rootfs": "its own"}

    class Info:
        def __init__(self, path: Path) -> None:
            self.generation, self.uuid = 1, uuids[path.name]
            self.parent_uuid = parent if path.name == "rootfs" else ""

    monkeypatch.setattr("migrator.host.btrfs.info", Info)
    monkeypatch.setattr("migrator.host.btrfs.is_subvolume", lambda path: path != here.container)
    assert here.is_own_rootfs() is ours
    monkeypatch.setattr("migrator.host.btrfs.is_subvolume", lambda path: False)
    assert here.is_own_rootfs() is False


@pytest.mark.parametrize(("spool", "formerly", "began"), [
    (False, True, True), (True, True, False), (False, False, False), (True, False, False),
])
def test_what_an_older_version_began(here: Layout, spool: bool, formerly: bool, began: bool) -> None:
    here.make_folder()
    if spool:
        here.spool.mkdir()
    if formerly:
        (here.folder / here.spool.name).mkdir()
    assert here.began_formerly() is began


def test_what_ran_for_a_moment_is_numbered(here: Layout) -> None:
    """Beyond nine, too, and with gaps; only this migration's."""
    assert here.set_aside() == [] and here.aside() == here.work / "0badc0de.ran.1"
    here.make_folder()
    for name in ("0badc0de.ran.3", "0badc0de.ran.10", "feedface.ran.20", "0badc0de.spool", "0badc0de.ran.x"):
        (here.work / name).mkdir()
    assert {path.name for path in here.set_aside()} == {"0badc0de.ran.3", "0badc0de.ran.10"}
    assert here.aside() == here.work / "0badc0de.ran.11"


def test_what_of_memory_is_promised_adds_up(here: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("0badc0de.images", "89abcdef.images"):
        (image_folders.RUNTIME / name).mkdir(parents=True)
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name.endswith(".images"))
    whole = sum((found.f_bfree + found.f_blocks) * found.f_frsize
                for found in map(os.statvfs, image_folders.RUNTIME.iterdir()))
    (image_folders.RUNTIME / "lock").mkdir()
    assert image_folders.memory_promised() == pytest.approx(whole, rel=0.05), "others write to that file system, too"
    assert image_folders.memory_promised() > 1.5 * whole / 2


@pytest.mark.parametrize("failed", [False, True])
def test_a_mount_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failed: bool) -> None:
    calls: list[tuple[object, ...]] = []

    class LibC:
        def mount(self, *args: object) -> int:
            calls.append(args)
            ctypes.set_errno(errno.EPERM if failed else 0)
            return -1 if failed else 0

    monkeypatch.setattr(image_folders, "_libc", LibC)
    with pytest.raises(PermissionError) if failed else contextlib.nullcontext():
        image_folders._mount(tmp_path, 4096)
    # nosuid, nodev
    assert calls == [(b"migrator", os.fsencode(tmp_path), b"tmpfs", 6, b"size=4096,nr_inodes=50000,mode=0700")]
