# SPDX-License-Identifier: GPL-2.0-or-later
"""Files are looked up by what is known of them. On btrfs and on cgroups: tests/rig/test_systemd_guest.py."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrator.host import inner_paths, inode_paths


@pytest.fixture
def looked_up(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are."""
    names, honest = [], inner_paths.look_up

    def noted(above: int, path: str) -> None:
        honest(above, path)
        names.append(path)

    monkeypatch.setattr(inner_paths, "look_up", noted)
    return names


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[int]:
    """Three directories, one in the other, with a file in each; the first one, open."""
    for folder in ("", "a", "a/b"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / f"{Path(folder).name or 'top'}.events").touch()
    yield (top := os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY))
    os.close(top)


def test_every_file_is_looked_up(tree: int, looked_up: list[str]) -> None:
    inode_paths.look_up(tree, 10)
    assert looked_up == ["top.events", "a.events", "b.events"]


@pytest.mark.parametrize(("limit", "found"), [(1, ["top.events"]), (2, ["top.events"]),
                                              (3, ["top.events", "a.events"])])
def test_no_more_than_so_many(tree: int, looked_up: list[str], limit: int, found: list[str]) -> None:
    inode_paths.look_up(tree, limit)
    assert looked_up == found


def test_directories_count_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody may make millions without a file."""
    for number in range(20):
        (tmp_path / str(number)).mkdir()
    entered, honest = [], inner_paths.folder_of_mount

    def enter(above: int, name: str) -> int:
        entered.append(name)
        return honest(above, name)

    monkeypatch.setattr(inner_paths, "folder_of_mount", enter)
    top = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        inode_paths.look_up(top, 5)
    finally:
        os.close(top)
    assert len([name for name in entered if name != ".."]) == 4


def test_as_deep_as_a_user_likes(tmp_path: Path, looked_up: list[str]) -> None:
    """Of cgroups, which somebody who has one can make in it: one in the other, 1200 times."""
    code = ("import os, sys\nos.chdir(sys.argv[1])\n"
            "for _ in range(1200):\n    os.mkdir('d'); os.chdir('d')\nopen('last.events', 'w').close()")
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    top = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        inode_paths.look_up(top, 2000)
    finally:
        os.close(top)
        subprocess.run(["rm", "-r", str(tmp_path)], check=True)
    assert looked_up == ["last.events"]


MOUNTED = """
import os, subprocess, sys
from migrator.host import inner_paths, inode_paths
for source, place in zip(sys.argv[1:], ("a", "top.events"), strict=True):
    subprocess.run(["mount", "--bind", source, place], check=True)
honest = inner_paths._open
def opened(above, path, *how):
    print(path)
    fd = honest(above, path, *how)
    print("opened", os.readlink(f"/proc/self/fd/{fd}"))
    return fd
inner_paths._open = opened
inode_paths.look_up(os.open(".", os.O_RDONLY), 10)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_nothing_mounted_is_asked(tree: int, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Neither a directory nor a file: its server may never answer (FUSE), and Ctrl-C does not end the wait for it."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "folder").mkdir()
    for name in ("file", "folder/file"):
        (elsewhere / name).touch()
    (tmp_path / "seen.events").touch()
    found = subprocess.run(["unshare", "--mount", sys.executable, "-c", MOUNTED, elsewhere / "folder",
                            elsewhere / "file"], cwd=tmp_path, check=True, capture_output=True, text=True,
                           env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}).stdout.splitlines()
    assert {"a", "top.events", "seen.events"} <= set(found)
    assert [line for line in found if line.startswith("opened")] == [f"opened {tmp_path}/seen.events"]


MOUNTED_MEANWHILE = """
import os, subprocess, sys
from migrator.host import inner_paths, inode_paths
subprocess.run(["mount", "--bind", ".", "."], check=True)
os.chdir(os.getcwd())
honest = inner_paths.look_up
def looked_up(above, path):
    if path == "b.events":
        subprocess.run(["mount", "--bind", sys.argv[1], "a"], check=True)
    print(path, flush=True)
    honest(above, path)
inner_paths.look_up = looked_up
try:
    inode_paths.look_up(os.open(".", os.O_RDONLY), 10)
except OSError as error:
    print(error.strerror)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_nor_what_is_mounted_above_meanwhile(tree: int, tmp_path: Path,
                                             tmp_path_factory: pytest.TempPathFactory) -> None:
    """The way back up leads onto a mount that was made over the directory since."""
    (tmp_path / "a/c").mkdir()
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "c").mkdir()
    (elsewhere / "c/elsewhere.events").touch()
    found = subprocess.run(["unshare", "--mount", sys.executable, "-c", MOUNTED_MEANWHILE, elsewhere], cwd=tmp_path,
                           check=True, capture_output=True, text=True,
                           env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}).stdout.splitlines()
    assert "b.events" in found and "elsewhere.events" not in found
    assert found[-1] == os.strerror(errno.EXDEV)


def test_no_other_file_system_is_asked() -> None:
    folder = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert inode_paths.paths(folder, 1) == []
    finally:
        os.close(folder)
