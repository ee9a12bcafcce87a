# SPDX-License-Identifier: GPL-2.0-or-later
"""What is executed, and open with O_PATH besides, in CRIU's images."""

from __future__ import annotations

from pathlib import Path

import pytest

from migrator.criu import executables
from tests.migrator.criu_images import image, message

O_PATH, O_CLOEXEC, O_RDWR = 0o10000000, 0o2000000, 2


def regular(id_: int, flags: int, name: str = "/usr/lib/systemd/systemd-executor") -> bytes:
    """A file_entry, with fields in it that nothing here knows."""
    entry = message((1, id_), (2, flags), (3, 0), (5, message((1, 0), (2, 0))), (6, name), (7, 173), (8, 1 << 40),
                    (11, 1), (11, 2), (99, b"later"))
    return message((1, 1), (2, id_), (3, entry), (98, 7))


def memory(executed: int) -> bytes:
    """A mm_entry, with mappings, and a number below zero."""
    return message((1, 0x55d0_0000_0000), (12, executed), (13, 33), (14, b"mapping"), (14, b"mapping"),
                   (15, (1 << 64) - 1))


def images(folder: Path, files: list[bytes], memories: dict[int, int]) -> dict[str, bytes]:
    (folder / "files.img").write_bytes(image("files.img", *files))
    for pid, executed in memories.items():
        (folder / f"mm-{pid}.img").write_bytes(image("mm", memory(executed)))
    return read(folder)


def read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_it_becomes_a_file_of_its_own(tmp_path: Path) -> None:
    """The descriptor stays what it was, with the flags that it had."""
    pipe = message((1, 2), (2, 40), (18, b"a pipe"))
    files = [regular(3, O_RDWR, "/etc/x"), regular(9, O_PATH | O_CLOEXEC), pipe]
    before = images(tmp_path, files, {1: 3, 77: 9, 103: 9})
    executables.separate(tmp_path)
    after = read(tmp_path)
    assert after["files.img"] == before["files.img"] + image("files.img", regular(41, 0))[8:]
    assert after["mm-1.img"] == before["mm-1.img"]
    assert after["mm-77.img"] == after["mm-103.img"] == image("mm", memory(41))


def test_each_has_one_of_its_own(tmp_path: Path) -> None:
    images(tmp_path, [regular(3, O_PATH, "/a"), regular(4, O_PATH, "/b"), regular(5, O_PATH, "/c")], {1: 4, 2: 3})
    executables.separate(tmp_path)
    new = image("files.img", regular(6, 0, "/b"), regular(7, 0, "/a"))[8:]
    assert (tmp_path / "files.img").read_bytes().endswith(new)
    assert (tmp_path / "mm-2.img").read_bytes() == image("mm", memory(7))


def test_what_has_been_deleted_is_so_for_both(tmp_path: Path) -> None:
    """After an upgrade, say: CRIU finds it by its id, not by its name, which is another file's by now."""
    images(tmp_path, [regular(3, O_PATH), regular(4, 0)], {1: 3})
    remaps = [message((1, 4), (2, 8), (3, 1)), message((1, 3), (2, 9), (3, 1), (99, b"later"))]
    (tmp_path / "remap-fpath.img").write_bytes(image("remap-fpath.img", *remaps))
    executables.separate(tmp_path)
    new = message((1, 5), (2, 9), (3, 1), (99, b"later"))
    assert (tmp_path / "remap-fpath.img").read_bytes() == image("remap-fpath.img", *remaps, new)


@pytest.mark.parametrize(("files", "executed"), [
    ([regular(3, 0)], 3),  # as of a CRIU that tells the two apart
    ([regular(3, O_PATH), regular(4, 0)], 4),
    ([regular(3, O_RDWR | O_CLOEXEC)], 3),
])
def test_there_is_nothing_to_do(tmp_path: Path, files: list[bytes], executed: int) -> None:
    before = images(tmp_path, files, {1: executed})
    executables.separate(tmp_path)
    assert read(tmp_path) == before


def test_images_that_make_no_sense(tmp_path: Path) -> None:
    executables.separate(tmp_path)
    images(tmp_path, [regular(3, O_PATH)], {1: 3})
    (tmp_path / "mm-1.img").write_bytes(image("mm", message((1, 5))))
    with pytest.raises(ValueError, match="a number is missing"):
        executables.separate(tmp_path)
    (tmp_path / "files.img").write_bytes(image("mm", regular(3, O_PATH)))
    with pytest.raises(ValueError, match="not a CRIU image"):
        executables.separate(tmp_path)
