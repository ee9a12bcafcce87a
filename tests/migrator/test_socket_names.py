# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the name of a UNIX socket leads in a container: by its links, and never through /proc."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrator import roots, socket_names
from migrator.preflight.mount_facts import parse_mountinfo
from migrator.socket_names import LINKS_MAX, AsksServer, Astray, Place

MOUNTS = {line.id: line.type for line in parse_mountinfo(Path("/proc/self/mountinfo").read_text())}


def follow(root: Path, name: str, own: int = -1, kinds: dict[int, str] | None = None) -> Place | None:
    """`kinds` has other types of mounts than they are of."""
    fd = os.open(root, os.O_PATH)
    try:
        return socket_names.follow(fd, name, MOUNTS | (kinds or {}), own)
    finally:
        os.close(fd)


@contextlib.contextmanager
def bound(path: Path) -> Iterator[Place]:
    with socket.socket(socket.AF_UNIX) as its:
        its.bind(str(path))
        found, mount = roots.placed(path)
        assert mount is not None
        yield Place(True, found.inode, mount)


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Iterator[None]:
    before = len(list(Path("/proc/self/fd").iterdir()))
    yield
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_name(tmp_path: Path) -> None:
    (tmp_path / "run/app").mkdir(parents=True)
    with bound(tmp_path / "run/app/s") as its:
        for name in ("/run/app/s", "run//app/./s", "/run/../run/app/s", "/../../run/app/../app/s"):
            assert follow(tmp_path, name) == its
        assert follow(tmp_path / "run", "/app/s") == its
    found = follow(tmp_path, "/run/app")
    assert found and not found.is_socket and found.inode == (tmp_path / "run/app").stat().st_ino


def test_its_links_are_the_containers(tmp_path: Path) -> None:
    (tmp_path / "run/app").mkdir(parents=True)
    (tmp_path / "var/lib").mkdir(parents=True)
    (tmp_path / "var/run").symlink_to("/run")
    (tmp_path / "var/lib/app").symlink_to("../../../../run/./app/")
    (tmp_path / "run/again").symlink_to("app/s")
    with bound(tmp_path / "run/app/s") as its:
        for name in ("/var/run/app/s", "/var/lib/app/s", "/var/lib/app/../app/s", "/run/again", "/var/run/again"):
            assert follow(tmp_path, name) == its


def test_nothing_is_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "dead").symlink_to("gone/x")
    for name in ("/gone", "/gone/a/b", "/file/a", "/dead", "/dead/a", "/gone/."):
        assert follow(tmp_path, name) is None


@pytest.mark.parametrize("name", ["/gone/../s", "/gone/a/../../s", "/file/../s", "/dead/../s", "/to-gone"])
def test_what_is_gone_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    """CRIU makes the folders, and would go on from there."""
    (tmp_path / "file").write_text("")
    (tmp_path / "dead").symlink_to("gone")
    (tmp_path / "to-gone").symlink_to("gone/../s")
    with bound(tmp_path / "s"), pytest.raises(Astray, match="leads upwards from a folder that is gone"):
        follow(tmp_path, name)


@pytest.mark.parametrize("name", ["/proc/self/fd/121/1/root/run/s", "/proc", "/proc/self/root/s", "h/s", "d/s", "/e"])
def test_never_through_proc(tmp_path: Path, name: str) -> None:
    """Also by a link to a link, and by one at the end."""
    (tmp_path / "h").symlink_to("/proc/self/fd/121/1/root/run")
    (tmp_path / "d").symlink_to(f"{tmp_path}/h")
    (tmp_path / "e").symlink_to("/proc/self/cwd/s")
    with pytest.raises(Astray, match="leads through /proc, "):
        follow(Path("/"), name if name.startswith("/proc") else f"{tmp_path}/{name}")


def test_links_come_to_an_end(tmp_path: Path) -> None:
    for number in range(LINKS_MAX + 1):
        (tmp_path / f"{number}").symlink_to(f"{number + 1}")
    assert follow(tmp_path, "/1") is None
    for name in ("/0", "/circle"):
        (tmp_path / "circle").unlink(missing_ok=True)
        (tmp_path / "circle").symlink_to("circle")
        with pytest.raises(Astray, match="too many symbolic links"):
            follow(tmp_path, name)


def test_what_asks_a_server(tmp_path: Path) -> None:
    """By the mount alone; on its own a socket's name is followed all the same."""
    with bound(tmp_path / "s") as its:
        for kind in ("nfs4", "fuse.sshfs", "cifs"):
            with pytest.raises(AsksServer, match=f"over a mount of the type {kind}, which may never answer"):
                follow(tmp_path, "/s", kinds={its.mount: kind})
            assert follow(tmp_path, "/s", its.mount, {its.mount: kind}) == its
        assert follow(tmp_path, "/s", kinds={its.mount: "btrfs"}) == its
        with pytest.raises(Astray, match="through /proc"):
            follow(tmp_path, "/s", its.mount, {its.mount: "proc"})


def test_a_mount_that_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As below the root of a process that has another one; or the kernel tells of none."""
    fd = os.open(tmp_path, os.O_PATH)
    try:
        with bound(tmp_path / "s"):
            with pytest.raises(Astray, match="a mount that is not known"):
                socket_names.follow(fd, "/s", {})
            monkeypatch.setattr(roots, "placed", lambda _: (roots.Root(1, 1), None))
            with pytest.raises(Astray, match="a mount that is not known"):
                socket_names.follow(fd, "/s", MOUNTS)
    finally:
        os.close(fd)
