# SPDX-License-Identifier: GPL-2.0-or-later
"""Cgroups in cgroups, as a container's users make them: too many levels for Python's own walk, too long for a path."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from migrator.base import deep_folders
from migrator.host import cgroup_limits, cgroups, empty_cgroups, lxc

FILES = {"cgroup.procs": "", "cgroup.freeze": "0\n", "cgroup.events": "populated 1\nfrozen 1\n", "memory.max": "7\n",
         "cgroup.subtree_control": ""}
LEVELS = {"many levels": ("d", 1200), "a long path": ("d" * 250, 20)}


def put(fd: int, name: str, text: str) -> None:
    with open(name, "w", opener=lambda path, flags: os.open(path, flags, 0o600, dir_fd=fd)) as file:
        file.write(text)


@pytest.fixture(params=sorted(LEVELS))
def payload(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A container's cgroup; a process, 4711, is in the innermost one, and nothing is frozen by itself."""
    top = tmp_path / "lxc.payload.web"
    top.mkdir()
    name, depth = LEVELS[request.param]
    fd = os.open(top, os.O_RDONLY)
    try:
        for level in range(depth + 1):
            for file, text in FILES.items():
                put(fd, file, "4711\n" if file == "cgroup.procs" and level == depth else text)
            if level < depth:
                os.mkdir(name, dir_fd=fd)
                below = os.open(name, os.O_RDONLY, dir_fd=fd)
                os.close(fd)
                fd = below
    finally:
        os.close(fd)
    yield top
    subprocess.run(["rm", "-rf", top], check=True)  # what removes pytest's folders calls itself, too


def test_who_is_in_there_is_seen(payload: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel looks up for each level does not grow with the depth, nor what is open: a thaw waits for it."""
    honest, asked, descriptors = os.open, list[int](), list[int]()

    def counted(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        asked.append(os.fsencode(path).count(b"/") + 1)
        descriptors.append(len(list(Path("/proc/self/fd").iterdir())))
        return honest(path, flags, mode, dir_fd=dir_fd)

    before = len(list(Path("/proc/self/fd").iterdir()))
    with monkeypatch.context() as counting:
        counting.setattr(os, "open", counted)
        assert cgroups.processes(str(payload)) == [4711]
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    levels = sum(1 for _ in deep_folders.walk(str(payload)))
    assert sum(asked) < 3 * levels + 20 and max(descriptors) <= before + 1


def test_what_is_looked_at_for_a_dump(payload: Path) -> None:
    """It comes to its end, whatever CRIU then says. What has a path that CRIU cannot open is refused before."""
    besides = cgroups.frozen_besides(str(payload))
    assert bool(besides) is ("d" * 250 in "".join(besides[:1]))
    assert all(len(each) > 3800 for each in besides)
    assert isinstance(cgroups.owners(str(payload)), str)
    assert cgroup_limits.record(str(payload)).startswith("memory.max 7\t")
    assert cgroup_limits.controllers(str(payload)) == ""


def test_what_is_left_empty_goes(payload: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lxc, "CGROUP", payload.parent)
    monkeypatch.setattr(lxc, "END_LIMIT", 0.0)
    empty_cgroups.drop("web")
    assert payload.is_dir(), "4711 lives there"
    subprocess.run(["find", payload, "-type", "f", "-delete"], check=True)
    empty_cgroups.drop("web")
    assert not payload.exists()


@pytest.mark.parametrize("act", [lambda path: os.close(deep_folders.opener(path, os.O_RDONLY)), deep_folders.rmdir])
def test_what_is_not_there(payload: Path, act: Callable[[str], None]) -> None:
    *_, (last, _) = deep_folders.walk(str(payload))
    with pytest.raises(OSError) as raised:
        act(f"{last}/none")
    assert raised.value.errno == errno.ENOENT


def test_the_order_and_what_cannot_be_read(tmp_path: Path) -> None:
    """Folders before what is in them, and no link is followed, as by os.walk."""
    for folder in ("a/b", "c"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "a" / "file").touch()
    (tmp_path / "c" / "link").symlink_to(tmp_path)
    unseen: list[str] = []
    found = {path.removeprefix(str(tmp_path)): files for path, files in deep_folders.walk(str(tmp_path), unseen.append)}
    assert found == {"": [], "/a": ["file"], "/a/b": [], "/c": ["link"]} and not unseen
    assert list(found).index("/a") < list(found).index("/a/b")
    walked = deep_folders.walk(str(tmp_path), unseen.append)
    next(walked)
    for folder in ("a/file", "c/link"):
        (tmp_path / folder).unlink()
    for folder in ("a/b", "a", "c"):
        (tmp_path / folder).rmdir()
    assert list(walked) == [] and sorted(unseen) == [f"{tmp_path}/a", f"{tmp_path}/c"]
    assert list(deep_folders.walk(f"{tmp_path}/none")) == []
