# SPDX-License-Identifier: GPL-2.0-or-later
"""What is known of a container, without LXC."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from migrator import btrfs
from migrator.errors import CommandFailed
from migrator.preflight import container_facts, host_facts, net_facts
from migrator.preflight.task_facts import Tasks


def test_memory() -> None:
    assert container_facts.memory_of("anon 4096\nfile 999999\nshmem 100\nanon_thp 5\n") == 4196
    assert container_facts.memory_of("") == 0


def test_used_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "file").write_bytes(os.urandom(100_000))
    (tmp_path / "link").symlink_to("/")
    assert 100_000 <= container_facts.used_bytes(tmp_path) < 2**20
    monkeypatch.setattr(container_facts, "WALK_LIMIT", -1)
    assert container_facts.used_bytes(tmp_path) == -1


def test_container_that_is_stopped(tmp_path: Path) -> None:
    """Without LXC: all that is asked of it is a name, a path, a state and its configuration's file."""

    class Stopped:
        name, lxcpath, state, rootfs = "c1", tmp_path, "STOPPED", tmp_path
        config_file = tmp_path / "config"

    (tmp_path / "config").write_text(f"lxc.rootfs.path = dir:{tmp_path}\nlxc.net.0.type = empty\n")
    facts = container_facts.gather(Stopped(), full=False)  # type: ignore[arg-type]
    assert (facts.name, facts.state, facts.init_pid, facts.rootfs.path) == ("c1", "STOPPED", 0, str(tmp_path))
    assert facts.rootfs.used == -1 and facts.tasks == Tasks()


def test_a_program_that_fails_is_no_fact(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise CommandFailed(command="ip", outcome="exit status 1", output="no")

    monkeypatch.setattr("migrator.preflight.net_facts.run", fails)
    monkeypatch.setattr("migrator.preflight.host_facts.run", fails)
    assert host_facts._version(["lxc-start", "--version"]) == ""
    assert net_facts.interfaces() == ()


@pytest.mark.parametrize("replaced", [False, True])
def test_the_disk_that_it_lives_on_is_not_the_one_that_its_configuration_names(
        tmp_path: Path, replaced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after `mv rootfs rootfs.old; btrfs subvolume snapshot rootfs.old rootfs`: by the root of its first process."""
    class Running:
        name, lxcpath, state, init_pid = "c1", tmp_path, "RUNNING", os.getpid()
        config_file, cgroup, is_ephemeral = tmp_path / "config", tmp_path / "no cgroup", True

    monkeypatch.setattr(net_facts, "interfaces", lambda *_: ())
    monkeypatch.setattr(btrfs, "nested", lambda _: [])
    (tmp_path / "config").write_text(f"lxc.rootfs.path = btrfs:{tmp_path if replaced else '/'}\n")
    facts = container_facts.gather(Running(), full=False)  # type: ignore[arg-type]
    assert facts.rootfs.replaced is replaced
    assert facts.ephemeral and not facts.config.ephemeral, "by its monitor"
