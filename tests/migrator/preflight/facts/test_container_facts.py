# SPDX-License-Identifier: GPL-2.0-or-later
"""What is known of a container, without LXC."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from migrator.errors.this_host import CommandFailed
from migrator.host import btrfs, net_state
from migrator.preflight.facts import container_facts, host_facts
from migrator.preflight.facts.task_facts import Tasks


def test_memory() -> None:
    stat = "anon 4096\nfile 999999\nshmem 100\nswapcached 90\nanon_thp 5\n"
    assert container_facts.memory_of(stat, "") == 4106
    assert container_facts.memory_of(stat, "8192\n") == 4106 + 8192, "CRIU reads back what is swapped out"
    assert container_facts.memory_of("", "") == container_facts.memory_of("swapcached 7", "0\n") == 0


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

    monkeypatch.setattr("migrator.host.net_state.run", fails)
    monkeypatch.setattr("migrator.preflight.facts.host_facts.run", fails)
    assert host_facts._version(["lxc-start", "--version"]) == ""
    assert net_state.interfaces() == ()


@pytest.mark.parametrize(("count", "seen"), [(3, 3), (100, 63)])
def test_what_the_kernel_encrypts_in_nested_network_namespaces(tmp_path: Path, count: int, seen: int,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    """CRIU dumps them. Two processes are in each, which have no more to say than one; others have ended."""
    class Running:
        name, lxcpath, state, init_pid, is_ephemeral = "c1", tmp_path, "RUNNING", 5_000_000, False
        config_file, cgroup = tmp_path / "config", tmp_path

    host, first, *nested = (f"net:[{number}]" for number in range(count + 2))
    links = {"self": host, "5000000": first, "5000001": first, "5000002": host}
    links |= {str(5_000_010 + number): name for number, name in enumerate([*nested, *nested])}
    entered: list[int] = []

    def program(argv: list[str], **_: Any) -> SimpleNamespace:
        assert argv[0:2] == ["nsenter", "--target"] and argv[3:] == ["--net", "ip", "-s", "xfrm", "policy", "count"]
        entered.append(int(argv[2]))
        return SimpleNamespace(stdout=b"\t SPD IN  0 OUT 0 FWD 0 (Sock: IN 0 OUT 0 FWD 0)\n")

    monkeypatch.setattr(net_state, "interfaces", lambda *_: ())
    monkeypatch.setattr(net_state, "link", lambda path: links.get(path.split("/")[2], ""))
    stat = {"/proc/5000012/net/tls_stat": "TlsCurrTxSw 7\n"}
    monkeypatch.setattr(net_state, "_read", lambda path: stat.get(path, ""))
    monkeypatch.setattr(net_state, "run", program)
    (tmp_path / "config").write_text("lxc.rootfs.path = dir:/\n")
    (tmp_path / "cgroup.procs").write_text("\n".join([*(pid for pid in links if pid != "self"), "5000009"]))
    facts = container_facts.gather(Running(), full=False)  # type: ignore[arg-type]
    assert facts.encrypted == ("TLS of 7 connections",) and facts.networks == count + 1
    assert entered == [5_000_000, *range(5_000_010, 5_000_010 + seen)], "not the host's"


@pytest.mark.parametrize(("said", "ipsec"), [
    ("\t SPD IN  0 OUT 0 FWD 0 (Sock: IN 0 OUT 0 FWD 0)\n", False), ("\t SPD IN  0 OUT 20 FWD 0 (Sock: IN 0", True),
    ("\t SPD IN  0 OUT 0 FWD 0 (Sock: IN 1 OUT 0 FWD 0)\n", True)])
def test_policies_of_ipsec_are_counted(said: str, ipsec: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of single sockets too. There may be as many as who is in the container likes to make."""
    monkeypatch.setattr(net_state, "_read", lambda _: "")
    monkeypatch.setattr(net_state, "run", lambda *_, **__: SimpleNamespace(stdout=said.encode()))
    assert net_state.encrypted([1, 2]) == (("IPsec",) if ipsec else ())


@pytest.mark.parametrize("replaced", [False, True])
def test_the_disk_that_it_lives_on_is_not_the_one_that_its_configuration_names(
        tmp_path: Path, replaced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after `mv rootfs rootfs.old; btrfs subvolume snapshot rootfs.old rootfs`: by the root of its first process."""
    class Running:
        name, lxcpath, state, init_pid = "c1", tmp_path, "RUNNING", os.getpid()
        config_file, cgroup, is_ephemeral = tmp_path / "config", tmp_path / "no cgroup", True

    monkeypatch.setattr(net_state, "interfaces", lambda *_: ())
    monkeypatch.setattr(btrfs, "nested", lambda _: [])
    (tmp_path / "config").write_text(f"lxc.rootfs.path = btrfs:{tmp_path if replaced else '/'}\n")
    facts = container_facts.gather(Running(), full=False)  # type: ignore[arg-type]
    assert facts.rootfs.replaced is replaced
    assert facts.ephemeral and not facts.config.ephemeral, "by its monitor"
