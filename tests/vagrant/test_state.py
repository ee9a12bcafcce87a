# SPDX-License-Identifier: GPL-2.0-or-later
"""Locks, process identities, what the root file systems are made from, and the sweep of cgroup v1."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from riglib import install, legacy, paths, rootfs, state
from riglib.errors import Busy, NotRunning


def test_a_lock_excludes(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with state.lock(file), pytest.raises(Busy), state.lock(file, timeout=0.1):
        pass
    with state.lock(file, remove=True):
        pass
    assert not file.exists()


def test_a_child_that_inherits_a_lock_holds_it(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with state.lock(file) as descriptor:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[descriptor])
    with pytest.raises(Busy), state.lock(file, timeout=0.1):
        pass
    child.communicate(b"\n")
    with state.lock(file, timeout=5):
        pass


def test_a_process_is_known_by_its_start(tmp_path: Path) -> None:
    own = os.getpid()
    (tmp_path / "hosta.pid").write_text(f"{own} {paths.start_time(own)}\n")
    assert paths.host_pid("hosta") == own
    (tmp_path / "hosta.pid").write_text(f"{own} 1\n")
    with pytest.raises(NotRunning, match="dead"):
        paths.host_pid("hosta")
    (tmp_path / "hosta.pid").write_text("")
    with pytest.raises(NotRunning):
        paths.host_pid("hosta")


def test_a_torn_state_is_none(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"phase": "u')
    assert state.load(str(tmp_path)) == {}


def test_requirements_come_from_setup_cfg() -> None:
    listed = {line.split()[0] for line in rootfs.requirements()}
    assert {"paramiko", "pyroute2", "pybtrfs"} <= listed


def test_root_file_systems_are_named_after_what_they_are_made_from(monkeypatch: pytest.MonkeyPatch) -> None:
    before = rootfs.host_root(), rootfs.guest_root()
    assert before == (rootfs.host_root(), rootfs.guest_root())
    monkeypatch.setattr(rootfs, "requirements", lambda *extras: ["something-else"])
    assert rootfs.host_root() != before[0]
    assert rootfs.guest_root() == before[1]


def test_what_is_built_and_what_is_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A build removes what earlier versions have left; what the working tree needs stays, whichever kind it built."""
    monkeypatch.setattr(rootfs, "CACHE", tmp_path)
    built: list[str] = []

    def build(root: Path, options: list[str], locks: tuple[int, int]) -> None:
        assert options and all(options)
        root.mkdir()
        built.append(root.name)

    monkeypatch.setattr(rootfs, "build", build)
    monkeypatch.setattr(rootfs, "check_stable", lambda locks: built.append("check"))
    for name in ("host-old", "guest-old", "readme-old", ".building-old", "other"):
        (tmp_path / name).mkdir()
    host, guest, readme = rootfs.host_root(), rootfs.guest_root(), rootfs.readme_root()

    assert rootfs.ensure(0) == [host, guest]
    assert sorted(built) == sorted([host.name, guest.name])
    assert {path.name for path in tmp_path.iterdir()} == {host.name, guest.name, "other", ".lock"}

    assert rootfs.ensure(0, by_readme=True) == [host, guest, readme]
    assert built[2:] == ["check", readme.name]  # not before it is known that Debian 13 has all of it
    shutil.rmtree(guest)
    assert rootfs.ensure(0) == [host, guest]
    assert readme.is_dir()
    (tmp_path / "readme-old").mkdir()
    assert rootfs.ensure(0, by_readme=True) == [host, guest, readme]
    assert len(built) == 5


def test_what_is_installed() -> None:
    files = install.package_files()
    assert {"setup.py", "setup.cfg", "migrator/__init__.py", "stages/__init__.py"} <= set(files)
    assert not [name for name in files if name.startswith(("tests/", "vagrant/")) or "__pycache__" in name]
    assert install.digest(files) == install.digest(files) != install.digest(files[1:])


def test_the_sweep_takes_empty_payloads_alone(tmp_path: Path) -> None:
    (tmp_path / "lxc.payload.c1/system.slice").mkdir(parents=True)
    (tmp_path / "lxc.payload.c2").mkdir()
    (tmp_path / "lxc.payload.c2/stands-for-a-process").touch()
    (tmp_path / "other").mkdir()
    legacy.sweep([tmp_path])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lxc.payload.c2", "other"]
