# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the name of a UNIX socket leads in a container: by its links, and never through /proc."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrator.criu import socket_names
from migrator.criu.socket_names import LINKS_MAX, AsksServer, Astray, Patience, View, Way
from migrator.host import roots
from migrator.host.mountinfo import parse_mountinfo
from migrator.host.roots import Root

MOUNTS = parse_mountinfo(Path("/proc/self/mountinfo").read_text())


def look(root: Path, name: str, own: int = -1, kinds: dict[int, str] | None = None,
         superuser: int | None = None) -> Way:
    """`kinds` has other types of mounts than they are of. Whoever runs this is root in there unless it is another."""
    mounts = [dataclasses.replace(line, type=(kinds or {}).get(line.id, line.type)) for line in MOUNTS]
    fd = os.open(root, os.O_PATH)
    try:
        return socket_names.follow(View.of(fd, mounts, os.getuid() if superuser is None else superuser), name,
                                   Patience(), own)
    finally:
        os.close(fd)


def follow(root: Path, name: str, own: int = -1, kinds: dict[int, str] | None = None) -> Root | None:
    way = look(root, name, own, kinds)
    assert not way.by_users
    assert way.is_socket or not way.place or way.place.inode == (root / name.strip("/")).stat().st_ino
    return way.place


def number(path: Path) -> int:
    """Of the mount that it is on."""
    found = roots.placed(path)[1]
    assert found is not None
    return found


@contextlib.contextmanager
def bound(path: Path) -> Iterator[Root]:
    with socket.socket(socket.AF_UNIX) as its:
        its.bind(str(path))
        found = path.stat()
        yield Root(found.st_dev, found.st_ino)


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
    assert follow(tmp_path, "/run/app") and not look(tmp_path, "/run/app").is_socket


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
    mount = number(tmp_path)
    with bound(tmp_path / "s") as its:
        for kind in ("nfs4", "fuse.sshfs", "cifs"):
            with pytest.raises(AsksServer, match=f"through a mount of type {kind}, which may never answer"):
                follow(tmp_path, "/s", kinds={mount: kind})
            assert follow(tmp_path, "/s", mount, {mount: kind}) == its
        assert follow(tmp_path, "/s", kinds={mount: "btrfs"}) == its
        with pytest.raises(Astray, match="through /proc"):
            follow(tmp_path, "/s", mount, {mount: "proc"})


def test_a_mount_that_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As below the root of a process that has another one; or the kernel tells of none."""
    fd = os.open(tmp_path, os.O_PATH)
    try:
        with bound(tmp_path / "s"):
            with pytest.raises(Astray, match="an unknown mount"):
                socket_names.follow(View.of(fd, [], 0), "/s", Patience())
            monkeypatch.setattr(roots, "placed", lambda _: (roots.Root(1, 1), None))
            with pytest.raises(Astray, match="an unknown mount"):
                socket_names.follow(View.of(fd, MOUNTS, 0), "/s", Patience())
    finally:
        os.close(fd)


@pytest.mark.parametrize("name", ["/a/b/../s", "/a/b/../../s", "/l/s"])
def test_each_mount_on_the_way_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """CRIU asks in each folder on its way for the next word, though the name leads out of it again."""
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "l").symlink_to("a/b/..")
    away, honest = roots.at(tmp_path / "a/b"), roots.placed

    def placed(path: Path) -> tuple[Root, int | None]:
        found, number = honest(path)
        return found, 2**31 - 1 if found == away else number

    monkeypatch.setattr(roots, "placed", placed)
    mounts = [*MOUNTS, dataclasses.replace(MOUNTS[0], id=2**31 - 1, type="nfs4")]
    fd = os.open(tmp_path, os.O_PATH)
    try:
        with pytest.raises(AsksServer):
            socket_names.follow(View.of(fd, mounts, os.getuid()), name, Patience())
    finally:
        os.close(fd)


@pytest.mark.parametrize("name", ["/h/s", "/h/gone", "/l/s", "/l/gone", "/h/../h/s"])
def test_a_link_that_is_not_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Whose the folder is that it leads to does not matter; but the one that it lies in: who has that can rename it."""
    (tmp_path / "run").mkdir()
    (tmp_path / "h").symlink_to("/run")
    (tmp_path / "l").symlink_to("h")
    (tmp_path / "his").symlink_to("h")
    owners = {(tmp_path / each).lstat().st_ino: 0 for each in ("", "run", "h", "l")}
    owners[(tmp_path / "his").lstat().st_ino] = 1000
    real = os.fstat

    def owned(fd: int) -> os.stat_result:
        found = real(fd)
        values = [int(value) for value in found[:10]]
        values[stat.ST_UID] = owners.get(found.st_ino, found.st_uid)
        return os.stat_result(values)

    with bound(tmp_path / "run/s"):
        monkeypatch.setattr(os, "fstat", owned)
        for owner, by_users in ((0, False), (100000, False), (1000, True)):
            owners[(tmp_path / "h").lstat().st_ino] = owner
            assert look(tmp_path, name, superuser=100000).by_users is by_users
            assert not look(tmp_path, f"/run/{name[-1]}", superuser=100000).by_users
        owners[(tmp_path / "h").lstat().st_ino] = 0
        assert look(tmp_path, f"/his/{name[-1]}", superuser=100000).by_users, "the first one was his"
        owners |= {tmp_path.lstat().st_ino: 1000}
        assert look(tmp_path, name, superuser=100000).by_users, "the link's folder is his"


def test_whether_the_last_word_is_a_link(tmp_path: Path) -> None:
    """CRIU takes away what is there by that name itself."""
    (tmp_path / "run").mkdir()
    (tmp_path / "h").symlink_to("run")
    (tmp_path / "run/l").symlink_to("s")
    (tmp_path / "l").symlink_to("h/l")
    (tmp_path / "m").symlink_to("h/s")
    (tmp_path / "dead").symlink_to("gone")
    with bound(tmp_path / "run/s"):
        for name, by_link in (("/run/s", False), ("/h/s", False), ("/h/l", True), ("/l", True), ("/run/l", True),
                              ("/m", True), ("/dead", True), ("/gone", False)):
            assert look(tmp_path, name).by_link is by_link


def test_in_which_folder_it_is(tmp_path: Path) -> None:
    """Also where that is gone: CRIU would make it."""
    (tmp_path / "run/app").mkdir(parents=True)
    (tmp_path / "var").mkdir()
    (tmp_path / "var/run").symlink_to("/run")
    (tmp_path / "s").symlink_to("var/run/app/../app/t")
    (tmp_path / "file").write_text("")
    folders = {"/run/app": "/run", "/var/run/app/s": "/run/app", "/s": "/run/app", "/var/run/gone/a/s": "/run/gone/a",
               "/gone": "/", "/run": "/", "/": "/", "/file/s": "/file", "/../var/./run//s": "/run"}
    assert {name: look(tmp_path, name).folder for name in folders} == folders


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_who_could_make_it_lead_elsewhere(tmp_path: Path) -> None:
    """The owner of each folder on the way, also to a link, and of the last; anybody where not only he may write."""
    nobody = socket_names.ANYBODY
    for owner, folder, mode in ((1, "a", 0o755), (2, "a/b", 0o755), (3, "c", 0o775), (4, "d", 0o1757), (5, "e", 0o700)):
        (tmp_path / folder).mkdir()
        os.chown(tmp_path / folder, owner, 9)
        (tmp_path / folder).chmod(mode)
    (tmp_path / "e/l").symlink_to("/a/f")
    (tmp_path / "a/f").touch()
    os.chown(tmp_path / "a/f", 6, 9)
    (tmp_path / "a/f").chmod(0o666)
    said = {"/": set(), "/a": {1}, "/a/b": {1, 2}, "/a/b/gone/x": {1, 2}, "/a/f": {1}, "/c": {3, nobody},
            "/d/gone": {4, nobody}, "/e/l": {5, 1}, "/a/b/../f": {1, 2}}
    assert {name: set(look(tmp_path, name).movers) for name in said} == said
    ways = {name: look(tmp_path, name) for name in ("/", "/a/b", "/a/f", "/e/l", "/gone")}
    assert [way.owner for way in ways.values()] == [0, 2, 6, 6, nobody]
    assert [way.is_folder for way in ways.values()] == [True, True, False, False, False]


def test_names_that_are_dear_to_follow(tmp_path: Path) -> None:
    """All of them together come to an end, while a container stands still."""
    (tmp_path / "l").symlink_to("/".join([".", "..", "a"] * 30))
    (tmp_path / "a").mkdir()
    patience = Patience(200)
    fd = os.open(tmp_path, os.O_PATH)
    try:
        view = View.of(fd, MOUNTS, os.getuid())
        for _ in range(3):
            assert socket_names.follow(view, "/l", patience).place
        with pytest.raises(Astray, match="is one of too many, or leads through too many folders"):
            socket_names.follow(view, "/l", patience)
        for words, enough in ((3, True), (2, False)):
            with contextlib.nullcontext() if enough else pytest.raises(Astray):
                socket_names.follow(view, "/a/b/c", Patience(words))
    finally:
        os.close(fd)


@pytest.mark.parametrize(("uid_map", "root"), [
    ("         0          0 4294967295\n", 0), ("0 100000 65536\n", 100000), ("1000 7 1\n0 100000 1000\n", 100000),
    ("1000 7 1\n", 0), ("", 0)])
def test_whose_links_are_roots(uid_map: str, root: int) -> None:
    assert socket_names.superuser(uid_map) == root
