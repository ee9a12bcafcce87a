# SPDX-License-Identifier: GPL-2.0-or-later
"""Containers and cgroups: what is read from texts, and what is done to a cgroup's files."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from migrator.errors.containers import ContainerNotFound
from migrator.errors.memory import FreezeFailed
from migrator.host import empty_cgroups, lxc, monitor_socket


@pytest.mark.parametrize(("value", "path"), [
    ("/pool/c1/rootfs", "/pool/c1/rootfs"), ("btrfs:/pool/c1/rootfs", "/pool/c1/rootfs"),
    ("dir:/pool/c1/rootfs", "/pool/c1/rootfs"), ("/pool/a:b/rootfs", "/pool/a:b/rootfs"),
])
def test_rootfs_path(value: str, path: str) -> None:
    assert lxc.rootfs_path(value) == Path(path)


@pytest.mark.parametrize(("text", "path"), [
    ("0::/lxc.payload.c1\n", "/sys/fs/cgroup/lxc.payload.c1"),
    ("12:freezer:/x\n1:name=systemd:/\n0::/lxc.payload.c1-1\n", "/sys/fs/cgroup/lxc.payload.c1-1"),
    ("0::/lxc.payload.c1/init.scope\n", "/sys/fs/cgroup/lxc.payload.c1"),
    ("0::/user.slice/lxc.payload.c1/lxc.payload.inner\n", "/sys/fs/cgroup/user.slice/lxc.payload.c1"),
    ("0::/machine.slice/c1\n", "/sys/fs/cgroup/machine.slice/c1"),
])
def test_payload_cgroup(text: str, path: str) -> None:
    assert lxc.payload_cgroup(text) == Path(path)


def test_payload_cgroup_without_v2() -> None:
    with pytest.raises(ValueError, match="v2"):
        lxc.payload_cgroup("4:freezer:/lxc/c1\n")


def test_a_container_without_configuration(tmp_path: Path) -> None:
    (tmp_path / "c1").mkdir()
    with pytest.raises(ContainerNotFound):
        lxc.Container("c1", tmp_path)


class Told:
    """What LXC is told of a container."""

    name = "c1"

    def __init__(self) -> None:
        self.told: list[str] = []

    def tell_frozen(self) -> None:
        self.told.append("frozen")

    def tell_thawed(self) -> None:
        self.told.append("thawed")


@pytest.fixture
def cgroup(tmp_path: Path) -> Path:
    (tmp_path / "cgroup.freeze").write_text("0\n")
    (tmp_path / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    return tmp_path


def test_freezing_waits_until_all_have_stopped(cgroup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    container, looks = Told(), 0

    def is_frozen(_: Path) -> bool:
        """The kernel has done it at the third look."""
        nonlocal looks
        looks += 1
        if looks == 3:
            assert (cgroup / "cgroup.freeze").read_text() == "1" and container.told == []
            (cgroup / "cgroup.events").write_text("populated 1\nfrozen 1\n")
        return honest(cgroup)

    honest = lxc.is_frozen
    monkeypatch.setattr(lxc, "is_frozen", is_frozen)
    lxc.freeze(container, cgroup, limit=600)  # type: ignore[arg-type]
    assert (looks, container.told) == (3, ["frozen"])
    assert (cgroup / "cgroup.freeze").read_text() == "1"


def test_what_does_not_freeze_is_thawed(cgroup: Path) -> None:
    container = Told()
    with pytest.raises(FreezeFailed, match=r"within 0\.1 seconds"):
        lxc.freeze(container, cgroup, limit=0.1)  # type: ignore[arg-type]
    assert (cgroup / "cgroup.freeze").read_text() == "0"
    assert "frozen" not in container.told


def test_processes_at_every_depth(cgroup: Path) -> None:
    (cgroup / "cgroup.procs").write_text("1\n22\n")
    (cgroup / "a" / "b").mkdir(parents=True)
    (cgroup / "a" / "b" / "cgroup.procs").write_text("333\n")
    assert sorted(lxc.processes(cgroup)) == [1, 22, 333]
    assert lxc.processes(cgroup / "gone") == []


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> lxc.Container:
    """A container whose monitor answers whatever the programs of `tmp_path` answer."""
    (tmp_path / "c1").mkdir()
    (tmp_path / "c1" / "config").touch()
    monkeypatch.setattr(lxc, "_lxc", lambda: SimpleNamespace(Container=lambda *_: SimpleNamespace()))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return lxc.Container("c1", tmp_path)


@pytest.mark.parametrize(("monitor", "running", "configured", "ephemeral"), [
    ((1, 0), "1", "0", True), ((1, 0), "0", "1", False),  # its monitor goes by what it has read at the start
    ((1, 0), None, "1", True), ((1, 1000), "0", "1", True), (None, "0", "1", True), (None, "1", "", False),
])
def test_what_is_destroyed_once_it_stops(
    named: lxc.Container, monitor: tuple[int, int] | None, running: str | None, configured: str, ephemeral: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(monitor_socket, "holder", lambda *_: monitor)
    monkeypatch.setattr(named, "_container", SimpleNamespace(
        get_running_config_item={"lxc.ephemeral": running}.get, get_config_item={"lxc.ephemeral": configured}.get))
    assert named.is_ephemeral is ephemeral


def program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_lxc_is_told(named: lxc.Container, cgroup: Path) -> None:
    for name in ("lxc-freeze", "lxc-unfreeze"):
        program(cgroup / name, f'echo {name} "$@" $(cat {cgroup}/cgroup.freeze) >>{cgroup}/told')
    (cgroup / "cgroup.events").write_text("populated 1\nfrozen 1\n")
    lxc.freeze(named, cgroup, limit=600)
    lxc.thaw(named, cgroup)
    assert (cgroup / "told").read_text().splitlines() == [
        f"lxc-freeze -n c1 -P {cgroup} 1", f"lxc-unfreeze -n c1 -P {cgroup} 0"]


@pytest.mark.parametrize("script", ["exec sleep infinity", "exit 1"])
def test_a_monitor_that_does_not_answer_holds_nobody_up(
    named: lxc.Container, cgroup: Path, script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was stopped, as by a debugger: the container is thawed before, and the command goes on."""
    monkeypatch.setattr(lxc, "TELL_LIMIT", 0.1)
    program(cgroup / "lxc-unfreeze", script)
    (cgroup / "cgroup.freeze").write_text("1")
    lxc.thaw(named, cgroup)
    assert (cgroup / "cgroup.freeze").read_text() == "0"
    assert "LXC still takes c1 for frozen" in capsys.readouterr().err


# --- whatever lives in a root file system ---------------------------------------------------------------------


@pytest.mark.parametrize("cgroup", ["lxc.payload.c1", "lxc.payload.c1-1", "guests/c1", "lxc/c1/ns", "user.slice"])
def test_what_lives_in_a_root_file_system_is_found_in_any_cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                                 cgroup: str) -> None:
    """LXC makes a container's cgroup where lxc.cgroup.dir or lxc.cgroup.pattern has it."""
    monkeypatch.setattr(lxc, "CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(lxc, "PROC", tmp_path / "proc")
    rootfs, other = tmp_path / "c1" / "rootfs", tmp_path / "c2" / "rootfs"
    roots = {1: Path("/"), 7: Path("/"), 4711: rootfs, 4712: other}
    for pid, root in roots.items():
        root.mkdir(parents=True, exist_ok=True)
        (tmp_path / "proc" / str(pid)).mkdir(parents=True)
        (tmp_path / "proc" / str(pid) / "root").symlink_to(root)
    for word in ("self", "8"):  # the second has ended
        (tmp_path / "proc" / word).mkdir()
    (tmp_path / "cgroup" / cgroup).mkdir(parents=True)
    (tmp_path / "cgroup" / cgroup / "cgroup.procs").write_text("7\n4711\n")
    assert lxc.lives_in("c1", rootfs)
    assert set(lxc.payload_processes("c1")) == {4711, 4712} | ({7} if cgroup.startswith("lxc.payload") else set())
    assert not lxc.lives_in("c1", tmp_path / "c1")


def test_who_has_but_called_chroot_is_no_containers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An administrator looks around in a root file system: he counts where it is to be removed, and is not ended."""
    monkeypatch.setattr(lxc, "CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(lxc, "PROC", tmp_path / "proc")
    rootfs = tmp_path / "c1" / "rootfs"
    rootfs.mkdir(parents=True)
    for pid, namespace in {"self": "pid:[1]", "4711": "pid:[2]", "4712": "pid:[1]", "4713": "pid:[1]"}.items():
        (tmp_path / "proc" / pid / "ns").mkdir(parents=True)
        (tmp_path / "proc" / pid / "ns" / "pid").symlink_to(namespace)
        (tmp_path / "proc" / pid / "root").symlink_to(rootfs)
    (tmp_path / "proc" / "4714").mkdir()
    (tmp_path / "proc" / "4714" / "root").symlink_to(rootfs)  # ends at this moment
    (tmp_path / "cgroup" / "lxc.payload.c1-1" / "user.slice").mkdir(parents=True)
    (tmp_path / "cgroup" / "lxc.payload.c1-1" / "user.slice" / "cgroup.procs").write_text("4713\n")
    looked: list[Path] = []
    honest = lxc.processes

    def processes(cgroup: Path) -> list[int]:
        looked.append(cgroup)
        return honest(cgroup)

    monkeypatch.setattr(lxc, "processes", processes)
    assert lxc.container_processes("c1") == [4711, 4713]
    assert looked == [tmp_path / "cgroup" / "lxc.payload.c1-1"], "once: a thaw waits for that"
    assert lxc.container_processes("") == [4711, 4713] and lxc.container_processes("c2") == [4711]
    assert lxc.runs_in("c1", rootfs)
    for ended in (4711, 4713):
        (tmp_path / "proc" / str(ended) / "root").unlink()
    assert lxc.lives_in("c1", rootfs) and not lxc.runs_in("c1", rootfs)


@pytest.mark.parametrize(("folder", "goes"), [
    ("", "{}"), ("guests/web", "guests/web/{}"), ("/guests/", "guests/{}"), ("../elsewhere", ""),
])
def test_cgroups_that_a_killed_lxc_has_left_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str,
                                               goes: str) -> None:
    """Where lxc.cgroup.dir has them made; one in which somebody lives stays, and so does what is called otherwise."""
    monkeypatch.setattr(lxc, "CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(lxc, "END_LIMIT", 0.0)
    all_ = [f"{place}/lxc.{kind}.{name}" for place in (".", "guests", "guests/web", "../elsewhere")
            for kind in ("payload", "monitor") for name in ("c1", "c2")]
    for each in all_:
        (tmp_path / "cgroup" / each / "init.scope").mkdir(parents=True)
    ours = [goes.format(f"lxc.{kind}.c1") for kind in ("payload", "monitor")] if goes else []
    for lived_in in (*ours, None):  # a monitor of that name may be about to fill the other one
        monkeypatch.setattr(lxc, "processes", lambda cgroup, lived_in=lived_in: [1] if lived_in and (
            cgroup == tmp_path / "cgroup" / lived_in) else [])
        empty_cgroups.drop("c1", folder)
        left = {each for each in all_ if (tmp_path / "cgroup" / each).is_dir()}
        gone = set() if lived_in else {each for each in all_ if Path(each) in map(Path, ours)}
        assert set(all_) - left == gone


@pytest.mark.parametrize(("what", "waited"), [("lives on", 1.0), ("ends", 0.5), ("is busy", 10.0)])
def test_a_container_that_lives_in_another_path_is_not_waited_for(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, waited: float) -> None:
    """The one that is moved stands still meanwhile. But what was killed may take a moment to end."""
    now = [0.0]
    monkeypatch.setattr(empty_cgroups, "time", SimpleNamespace(
        monotonic=lambda: now[0], sleep=lambda _: now.append(now.pop() + 0.25)))
    monkeypatch.setattr(lxc, "CGROUP", tmp_path)
    top = tmp_path / "lxc.payload.c1"
    top.mkdir()
    if what == "is busy":
        (top / "cgroup.threads").touch()
    monkeypatch.setattr(lxc, "processes", lambda cgroup: [1] if cgroup == top and (
        what == "lives on" or (what == "ends" and now[0] < waited)) else [])
    empty_cgroups.drop("c1")
    assert now == [waited] and top.is_dir() is (what != "ends")


def test_what_lives_nowhere_else_is_the_hosts() -> None:
    """The real /proc has this very process."""
    assert os.getpid() not in lxc.payload_processes("none") and not lxc.lives_in("none", Path("/proc"))
