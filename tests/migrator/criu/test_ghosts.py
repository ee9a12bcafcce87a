# SPDX-License-Identifier: GPL-2.0-or-later
"""What a dump's images say about what was open though deleted."""

from __future__ import annotations

import contextlib
import os
import stat
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from migrator.criu import at_restore, ghosts, image_messages
from migrator.criu.ghost_paths import FILE, FOLDER, line
from migrator.criu.protocol_buffers import varint
from migrator.host import roots
from tests.effort import tries
from tests.migrator.criu.ghost_images import made, regular, remap
from tests.migrator.criu_images import image, message


def test_what_was_deleted(tmp_path: Path) -> None:
    """A file, a folder in a tmpfs, another name of a file, which CRIU has given it, and a process that is gone."""
    made(tmp_path, [remap(1, 26, 1), remap(5, 77, 2), remap(2, 2, 1), remap(3, 4, 0)],
         [regular(1, "/a/b"), regular(5, "/proc/77/status"), regular(6, "/other"), regular(2, "/tmp/his/b", 12),
          regular(3, "/a/c"), regular(4, "/a/link_remap.4", -1)],
         {26: stat.S_IFREG, 2: stat.S_IFDIR})
    assert ghosts.plan(tmp_path) == (
        line(7, FILE, 0, "/a/b") + line(12, FOLDER, 1, "/tmp/his/b") + line(7, FILE, 0, "/a/link_remap.4"))


def test_nothing_was_deleted(tmp_path: Path) -> None:
    assert ghosts.plan(tmp_path) == ""
    (tmp_path / "files.img").write_bytes(b"not looked at")
    assert ghosts.plan(tmp_path) == ""
    for remaps in ([], [remap(5, 77, 2)]):
        made(tmp_path, remaps, [])
        for name in ("files.img", "mountpoints-12.img"):
            (tmp_path / name).write_bytes(b"not looked at")
        assert ghosts.plan(tmp_path) == ""


def test_bytes_of_any_kind_in_a_name(tmp_path: Path) -> None:
    name = b"/a\nb \xff"
    made(tmp_path, [remap(1, 1, 1)], [regular(1, name)], {1: stat.S_IFREG})
    assert ghosts.plan(tmp_path) == line(7, FILE, 0, os.fsdecode(name))


def test_the_frozen_container_itself(tmp_path: Path) -> None:
    """Here that is this process; a mount of another mount namespace's is not to be found in this one's."""
    (tmp_path / "link").symlink_to("/srv")
    (tmp_path / "again").mkdir()
    mount = roots.mounted(os.getpid())[1]
    assert mount is not None
    before = len(list(Path("/proc/self/fd").iterdir()))
    refused = {"link/gone": "link is now a symbolic link", "again": "another one now has its name"}
    for name, id_, said in [("gone", mount, ""), *((name, mount, said) for name, said in refused.items()),
                            ("link/gone", 2**31 - 1, "")]:
        made(tmp_path, [remap(1, 1, 1)], [regular(1, f"{tmp_path}/{name}", id_)], {1: stat.S_IFDIR})
        with pytest.raises(PermissionError, match=said) if said else contextlib.nullcontext():
            ghosts.require_here(tmp_path, os.getpid())
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    (tmp_path / "remap-fpath.img").unlink()
    ghosts.require_here(tmp_path, 2**22 + 1)


def test_a_mount_with_bytes_of_any_kind_in_its_name(tmp_path: Path) -> None:
    """What is on it is looked at, too."""
    name = b"/a\xff\rb"
    (tmp_path / "4/root").mkdir(parents=True)
    (tmp_path / "4/root" / os.fsdecode(name[1:])).symlink_to("/srv")
    (tmp_path / "4/mountinfo").write_bytes(b"7 1 0:7 / " + name + b" rw - tmpfs none rw\n")
    made(tmp_path, [remap(1, 1, 1)], [regular(1, name + b"/gone")], {1: stat.S_IFREG})
    with pytest.raises(PermissionError, match="is now a symbolic link"):
        ghosts.require_here(tmp_path, 4, str(tmp_path))


def test_a_link_is_not_made_again(tmp_path: Path) -> None:
    """It could lie on the way of another one."""
    made(tmp_path, [remap(1, 1, 1)], [regular(1, "/a/link")], {1: stat.S_IFLNK})
    with pytest.raises(ValueError, match="/a/link, a deleted symbolic link"):
        ghosts.plan(tmp_path)


def test_nor_is_a_link_given_another_name(tmp_path: Path) -> None:
    """One that has another name still. CRIU takes what it has made of it away before anybody can look."""
    files = [regular(4, "/tmp/link_remap.4", -1), regular(3, "/tmp/h", mode=stat.S_IFREG | 0o644)]
    made(tmp_path, [remap(3, 4, 0)], files)
    assert ghosts.plan(tmp_path) == line(7, FILE, 0, "/tmp/link_remap.4")
    files[1] = regular(3, "/tmp/h", mode=stat.S_IFLNK | 0o777)
    made(tmp_path, [remap(3, 4, 0)], files)
    with pytest.raises(ValueError, match=r"a symbolic link is open under a name that is gone: .* /tmp/link_remap\.4"):
        ghosts.plan(tmp_path)


def test_what_kind_it_was_is_said_at_the_beginning(tmp_path: Path) -> None:
    """The rest of a ghost's image is what the file held, of any size."""
    made(tmp_path, [remap(1, 1, 1)], [regular(1, "/a")])
    record = message((9, b"\0" * (64 << 10)), (3, stat.S_IFREG))
    (tmp_path / "ghost-file-1.img").write_bytes(image("ghost", record))
    with pytest.raises(ValueError, match=r"ghost-file-1\.img is damaged"):
        ghosts.plan(tmp_path)


def test_a_mount_twice(tmp_path: Path) -> None:
    made(tmp_path, [remap(1, 1, 1)], [regular(1, "/a")], {1: stat.S_IFREG})
    (tmp_path / "mountpoints-13.img").write_bytes(image("mounts", message((2, 7), (7, "./a"))))
    with pytest.raises(ValueError, match="a mount is in the images twice"):
        ghosts.plan(tmp_path)


REGULAR = message((1, 1), (2, 0), (6, "/a"), (7, 14))
NONSENSE = {
    "no such file": ([remap(1, 1, 1)], [regular(2, "/a")]),
    "another type": ([remap(1, 1, 3)], [regular(1, "/a")]),
    "an old one without a type": ([message((1, 1), (2, 1 << 31 | 1))], [regular(1, "/a")]),
    "a file twice": ([remap(1, 1, 1)], [regular(1, "/a"), regular(1, "/b")]),
    "a name twice": ([remap(1, 1, 1)], [message((1, 1), (3, REGULAR + message((6, "/b"))))]),
    "two files in one": ([remap(1, 1, 1)], [message((1, 1), (3, REGULAR), (3, message((6, "/b"))))]),
    "no absolute name": ([remap(1, 1, 1)], [regular(1, "a")]),
    "the end of a string": ([remap(1, 1, 1)], [regular(1, b"/a\0/b")]),
    "no mount": ([remap(1, 1, 1)], [message((1, 1), (3, message((1, 1), (6, "/a"))))]),
    "an unknown mount": ([remap(1, 1, 1)], [regular(1, "/a", 8)]),
    "no mount at all": ([remap(1, 1, 1)], [regular(1, "/a", -1)]),
    "beside its mount": ([remap(1, 1, 1)], [regular(1, "/tmpx/a", 12)]),
    "a record that ends too early": ([remap(1, 1, 1)], [message((1, 1), (3, REGULAR + varint(99 << 3)))]),
    # What follows would be taken for its length, and the name that CRIU reads for its contents.
    "a number of a fixed size": ([remap(1, 1, 1)],
                                 [message((1, 1), (3, varint(99 << 3 | 5) + struct.pack("<I", 4) + REGULAR))]),
}


@pytest.mark.parametrize(("remaps", "files"), NONSENSE.values(), ids=NONSENSE)
def test_what_could_mean_something_else_to_criu(tmp_path: Path, remaps: list[bytes], files: list[bytes]) -> None:
    made(tmp_path, remaps, files, {1: stat.S_IFREG})
    with pytest.raises(ValueError, match=r"image|img|twice|kind|mounts"):
        ghosts.plan(tmp_path)


def test_numbers_have_as_many_bits_as_criu_takes(tmp_path: Path) -> None:
    made(tmp_path, [remap(1, 1, 1)], [regular(1, "/a/link")], {1: 1 << 32 | stat.S_IFLNK})
    with pytest.raises(ValueError, match="symbolic link"):
        ghosts.plan(tmp_path)


@pytest.mark.parametrize("name", ["remap-fpath.img", "files.img", "mountpoints-12.img", "ghost-file-1.img"])
def test_images_that_are_damaged(tmp_path: Path, name: str) -> None:
    whole = (made(tmp_path, [remap(1, 1, 1)], [regular(1, "/a")], {1: stat.S_IFREG}) / name).read_bytes()
    for data in (b"", b"nonsense", whole[:10], whole[:14], whole[:8] + b"\xff" * 4 + whole[12:]):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=r"image|img|mounts"):
            ghosts.plan(tmp_path)


@pytest.mark.parametrize("name", ["remap-fpath.img", "files.img", "mountpoints-12.img"])
def test_an_image_that_ends_within_a_length(tmp_path: Path, name: str) -> None:
    """Also where what is there of it is 0, and what would follow nothing."""
    path = made(tmp_path, [remap(1, 1, 1)], [regular(1, "/a")], {1: stat.S_IFREG}) / name
    whole = path.read_bytes()
    for count in (1, 2, 3):
        path.write_bytes(whole + b"\0" * count)
        with pytest.raises(ValueError, match="is damaged"):
            ghosts.plan(tmp_path)


def test_images_of_an_old_kind(tmp_path: Path) -> None:
    made(tmp_path, [remap(1, 1, 1)], [regular(1, "/a")], {1: stat.S_IFREG})
    (tmp_path / "reg-files.img").touch()
    with pytest.raises(ValueError, match="from no current CRIU"):
        ghosts.plan(tmp_path)


def test_more_than_can_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path, [remap(1, 1, 1)], [regular(1, "/a")], {1: stat.S_IFREG})
    monkeypatch.setattr(at_restore, "GHOSTS_LIMIT", len(line(7, FILE, 0, "/a")) - 1)
    with pytest.raises(ValueError, match="more deleted files"):
        ghosts.plan(tmp_path)
    monkeypatch.setattr(at_restore, "GHOSTS_LIMIT", len(line(7, FILE, 0, "/a")))
    assert ghosts.plan(tmp_path)
    os.truncate(tmp_path / "files.img", image_messages.FILES_LIMIT + 1)
    with pytest.raises(ValueError, match="larger than"):
        ghosts.plan(tmp_path)


def test_any_bytes_are_read_or_refused(tmp_path: Path) -> None:
    good = [image("remap-fpath.img", remap(1, 1, 1)), image("files.img", regular(1, "/a"))]
    data = st.binary(max_size=200) | st.tuples(st.sampled_from(good), st.integers(8, 40), st.binary(max_size=9)).map(
        lambda found: found[0][:found[1]] + found[2] + found[0][found[1] + len(found[2]):])
    made(tmp_path, [], [], {1: stat.S_IFREG})

    @settings(max_examples=tries(100, 2000), deadline=None)
    @given(data, data)
    def test(remaps: bytes, files: bytes) -> None:
        (tmp_path / "remap-fpath.img").write_bytes(remaps)
        (tmp_path / "files.img").write_bytes(files)
        with contextlib.suppress(ValueError, FileNotFoundError):
            ghosts.plan(tmp_path)

    test()
