# SPDX-License-Identifier: GPL-2.0-or-later
"""Who owns what below a container's cgroup, before and after."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from migrator.base import deep_folders
from migrator.criu import at_restore
from migrator.host import cgroups

USER = os.getuid() or 101000  # somebody else than root, to whom we may give files away
GROUP = os.getgid() or 101000
EVERYBODY = [(0, 1 << 32)]
MAY_HAVE = {"cgroup.procs"}


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """A payload's cgroup as a systemd in a container leaves it: the root cgroup's files, a slice, a user's own."""
    for folder in ("", "system.slice", "user.slice/user@1000.service", "a name with spaces"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for name in ("cgroup.procs", "memory.max"):
            (tmp_path / folder / name).touch(mode=0o644)
    return tmp_path


def give(path: Path, mode: int) -> None:
    os.chown(path, USER, GROUP)
    path.chmod(mode)


def look(top: Path) -> dict[str, tuple[int, int, int]]:
    paths = [top, *top.rglob("*")]
    return {str(path.relative_to(top)): (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode))
            for path in paths if (found := path.lstat())}


def freezes(folder: Path, freeze: int, populated: int) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cgroup.freeze").write_text(f"{freeze}\n")
    (folder / "cgroup.events").write_text(f"populated {populated}\nfrozen 1\n")
    return str(folder)


def test_what_stays_frozen_when_it_is_thawed(tmp_path: Path) -> None:
    """Cgroups in it and above it, with processes, that are frozen by themselves; for now all of them are."""
    top = tmp_path / "machine.slice/lxc.payload.web"
    freezes(top, 1, 1)
    freezes(top / "system.slice", 0, 1)
    freezes(top / "empty", 1, 0)
    (top / "half gone").mkdir()
    assert cgroups.frozen_besides(str(top)) == []
    found = {freezes(top / "system.slice/redis.service", 1, 1), freezes(top / "a b", 1, 1),
             freezes(tmp_path / "machine.slice", 1, 1)}
    assert set(cgroups.frozen_besides(str(top))) == found


def test_what_cannot_be_looked_at_may_be_frozen(tmp_path: Path) -> None:
    """The container's root may make cgroups in each other until their path is longer than any that can be opened."""
    freezes(tmp_path, 1, 1)
    fd = os.open(tmp_path, os.O_PATH)
    try:
        for _ in range(20):
            os.mkdir("x" * 250, dir_fd=fd)
            below = os.open("x" * 250, os.O_PATH, dir_fd=fd)
            os.close(fd)
            fd = below
    finally:
        os.close(fd)
    found = cgroups.frozen_besides(str(tmp_path))  # perhaps also the one in which only a file's path is too long
    assert found and all(each.startswith(f"{tmp_path}/xxx") for each in found)
    told = cgroups.not_dumped(found[0])
    assert "too long" in told and "frozen" not in told and len(told) < 200
    assert cgroups.not_dumped("/sys/fs/cgroup/x") == (
        "the cgroup /sys/fs/cgroup/x is frozen, and CRIU would wait for it forever")


def test_one_that_is_just_being_removed_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    freezes(tmp_path / "later", 1, 1)
    honest = deep_folders.walk

    def walk(top: str, unseen: Callable[[str], object]) -> Iterator[tuple[str, list[str]]]:
        unseen(f"{top}/removed")
        yield from honest(top)

    monkeypatch.setattr(deep_folders, "walk", walk)
    assert cgroups.frozen_besides(str(tmp_path)) == [f"{tmp_path}/later"]


@pytest.mark.parametrize(("own", "procs", "walks", "here"), [
    ("lxc.payload.web/init.scope", "1\n4711\n", False, True),
    ("lxc.payload.web", "4711\n", False, True),
    ("lxc.payload.web/init.scope", "1\n", True, False),  # it has ended, and is not waited for yet
    ("lxc.payload.web/init.scope (deleted)", None, True, False),
    ("lxc.payload.website", "4711\n", True, False),
    ("lxc.payload.web/", None, True, False),
    ("", None, True, True),  # its path is too long to be told
    ("lxc.payload.web/threads", None, True, True),  # which is threaded, and lists none
])
def test_whether_a_process_is_in_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, procs: str | None,
                                       walks: bool, here: bool) -> None:
    """By its own cgroup, without a look at all others, where it is."""
    for folder in ("lxc.payload.web/init.scope", "lxc.payload.website", "proc/4711"):
        (tmp_path / folder).mkdir(parents=True)
    if own:
        (tmp_path / "proc/4711/cgroup").write_text(f"1:cpu:/\n0::/{own}\n")
    if procs is not None:
        (tmp_path / own / "cgroup.procs").write_text(procs)
    if here and walks:
        (tmp_path / "lxc.payload.web/cgroup.procs").write_text("4711\n")
    walked: list[str] = []
    honest = deep_folders.descend

    def descend(top: str) -> Iterator[tuple[list[str], list[str], int]]:
        walked.append(top)
        return honest(top)

    monkeypatch.setattr(cgroups, "TOP", str(tmp_path))
    monkeypatch.setattr(cgroups, "PROC", f"{tmp_path}/proc")
    monkeypatch.setattr(deep_folders, "descend", descend)
    assert cgroups.has_process(f"{tmp_path}/lxc.payload.web", 4711) is here
    assert bool(walked) is walks


def test_what_was_somebodys_is_his_again(top: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    give(top / "cgroup.procs", 0o664)
    give(top / "system.slice/cgroup.procs", 0o644)
    give(top / "user.slice/user@1000.service", 0o755)
    give(top / "a name with spaces/memory.max", 0o600)
    before = look(top)
    record = cgroups.owners(str(top))
    for path in top.rglob("*"):
        os.chown(path, os.getuid(), os.getgid())
        path.chmod(0o755 if path.is_dir() else 0o644)
    cgroups.give_back(str(top), record, EVERYBODY, EVERYBODY, MAY_HAVE)
    assert look(top) == before


def test_what_is_rights_alone_is_not_recorded(tmp_path: Path) -> None:
    """A privileged container's cgroup is all root's; there is nothing to be done at the restore."""
    if os.getuid():
        pytest.skip("needs a file of root's")
    (tmp_path / "cgroup.procs").touch()
    assert cgroups.owners(str(tmp_path)) == ""


def test_what_is_not_there_is_passed_over(top: Path) -> None:
    cgroups.give_back(str(top), f"{USER} {GROUP} 644 gone/cgroup.procs\n{USER} {GROUP} 600 cgroup.procs\n",
                      EVERYBODY, EVERYBODY, MAY_HAVE)
    assert stat.S_IMODE((top / "cgroup.procs").stat().st_mode) == 0o600


@pytest.mark.parametrize("line", [
    "1000 0 644 memory.max",  # a user of the host
    "0 1000 644 memory.max",
    "0 0 644 ../memory.max",
    "0 0 644 system.slice/../../memory.max",
    "0 0 644 /etc/passwd",
    "0 0 644 ./memory.max",
    "0 0 644 system.slice//memory.max",
    "0 0 memory.max",
    "0 0 rw memory.max",
])
def test_a_record_that_is_not_to_be_trusted(top: Path, line: str) -> None:
    before = look(top)
    with pytest.raises(ValueError):
        cgroups.give_back(str(top / "system.slice"), line, cgroups.mapped("0 100000 65536"), [(0, 1)], MAY_HAVE)
    assert look(top) == before


def test_the_ids_of_a_container() -> None:
    assert cgroups.mapped("         0     100000      65536\n     70000 300000 1\n") == [
        (0, 1), (100000, 165536), (300000, 300001)]
    assert cgroups.mapped("0 0 4294967295\n") == [(0, 1), (0, 4294967295)]


@pytest.mark.parametrize("end", ["\r", "\x0b", "\x1c", "\x85", "\u2028", "\udcff"])
def test_a_name_that_a_container_makes_is_one_name(top: Path, tmp_path_factory: pytest.TempPathFactory,
                                                   end: str) -> None:
    """cgroupfs refuses a newline in a name, and nothing else: what looks like another line is none."""
    folder = top / f"x{end}{USER} {GROUP} 666 memory.max{end}{USER} {GROUP} 644 y"
    folder.mkdir()
    (folder / "cgroup.procs").touch()
    give(folder / "cgroup.procs", 0o640)
    kept = tmp_path_factory.mktemp("images") / cgroups.RECORD
    kept.write_text(cgroups.owners(str(top)), errors="surrogateescape")
    (folder / "cgroup.procs").chmod(0o600)
    before = look(top)
    cgroups.give_back(str(top), at_restore.noted(str(kept.parent), cgroups.RECORD, 1 << 20), EVERYBODY, EVERYBODY,
                      MAY_HAVE)
    given = str((folder / "cgroup.procs").relative_to(top))
    assert look(top) == before | {given: (USER, GROUP, 0o640)}


def test_the_hosts_limits_stay_the_hosts(top: Path) -> None:
    """Of the container's own cgroup it gets what is delegated; those below are its own with all their files."""
    before = look(top)
    cgroups.give_back(str(top), "".join(f"{USER} {GROUP} 666 {below}memory.max\n" for below in ("", "system.slice/")),
                      EVERYBODY, EVERYBODY, MAY_HAVE)
    assert look(top) == before | {"system.slice/memory.max": (USER, GROUP, 0o666)}


def test_no_link_is_followed(top: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A cgroup has none; so whatever has one is not to be trusted."""
    outside = tmp_path_factory.mktemp("outside")
    (outside / "shadow").touch(mode=0o600)
    (top / "system.slice/folder").symlink_to(outside)
    (top / "system.slice/file").symlink_to(outside / "shadow")
    before = look(outside)
    cgroups.give_back(str(top), "".join(f"{USER} {GROUP} 666 system.slice/{below}\n"
                                        for below in ("folder", "folder/shadow", "file")),
                      EVERYBODY, EVERYBODY, MAY_HAVE)
    assert look(outside) == before


def test_what_is_delegated(tmp_path: Path) -> None:
    said = tmp_path / "delegate"
    said.write_text("cgroup.procs\nmemory.reclaim\n")
    assert cgroups.delegated(str(said)) == {"cgroup.procs", "memory.reclaim"}
    assert "cgroup.procs" in cgroups.delegated(str(tmp_path / "none")), "an older kernel does not say"
    for found in (cgroups.delegated(), cgroups.delegated(str(tmp_path / "none"))):
        assert not {name for name in found if name.endswith((".max", ".high", ".low", ".min", ".weight"))}


@pytest.mark.parametrize(("process", "inside"), [
    ("/lxc.payload.c1", True), ("/lxc.payload.c1/init.scope", True), ("/lxc.payload.c1-1", False), ("/", False),
    ("/lxc.monitor.c1", False),
])
def test_who_is_in_a_cgroup(process: str, inside: bool) -> None:
    text = f"2:cpuacct:/lxc.payload.c1\n0::{process}\n"
    assert cgroups.holds(f"{cgroups.TOP}/lxc.payload.c1", text) is inside
    assert cgroups.holds(cgroups.TOP, text), "the first of all holds everybody"
