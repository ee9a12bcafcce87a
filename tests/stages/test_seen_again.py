# SPDX-License-Identifier: GPL-2.0-or-later
"""What the preflight has seen and may have changed since: looked at once more as the container comes to a stand."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any, cast

import pytest

from migrator.criu import criu_dump
from migrator.errors.containers import ContainerChanged
from migrator.errors.memory import DumpFailed
from migrator.host import btrfs, lxc, net_state, network
from migrator.record.journal import Migration
from migrator.record.states import Event, State
from stages.steps import stop
from stages.steps.dump import Dump
from tests.migrator.mount_images import HEAD, entry
from tests.stages.dumps import Guest, dump_of, guest, hand_over, migration, standstill_of  # noqa: F401 -- fixtures
from tests.stages.journals import journal  # noqa: F401 -- a fixture
from tests.stages.monitorless import cgroup, init  # noqa: F401 -- fixtures


@pytest.fixture
def replaced(guest: Guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that its first process, whose root is this machine's, does not live in."""
    monkeypatch.setattr(guest, "rootfs", tmp_path)
    monkeypatch.setattr(btrfs, "sync", lambda _: None)
    return tmp_path


def stop_of(migration: Migration, guest: Guest) -> stop.Stop:
    return stop.Stop(standstill_of(migration, guest))


def test_what_lives_on_another_disk_is_not_frozen(migration: Migration, guest: Guest, replaced: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lxc, "freeze", lambda *_: pytest.fail("frozen"))
    made = dump_of(migration, guest)
    with pytest.raises(ContainerChanged, match=f"lives on another disk, or in another folder, than {replaced}"):
        hand_over(made)
    assert migration.state is State.PREPARED and cast("Any", made).watchdog.told == ["dismissed"]
    made.standstill.ignore = ("rootfs-replaced",)
    assert made.record().pid == guest.pid


def test_nor_is_it_stopped(migration: Migration, guest: Guest, replaced: Path,
                           monkeypatch: pytest.MonkeyPatch) -> None:
    made = stop_of(migration, guest)
    monkeypatch.setattr(made, "take", lambda: pytest.fail("stopped"))
    with pytest.raises(ContainerChanged, match=f"lives on another disk, or in another folder, than {replaced}"):
        hand_over(made)
    assert migration.state is State.PREPARED
    made.standstill.ignore = ("rootfs-replaced",)
    assert made.record().stopping is False


def test_what_lxc_would_destroy_is_not_stopped(migration: Migration, guest: Guest,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where somebody has asked for it by --ignore: all that it has written would be lost."""
    monkeypatch.setattr(btrfs, "sync", lambda _: None)
    monkeypatch.setattr(guest, "is_ephemeral", True)
    made = stop_of(migration, guest)
    made.standstill.ignore = ("ephemeral",)
    monkeypatch.setattr(made, "take", lambda: pytest.fail("stopped"))
    with pytest.raises(ContainerChanged, match="LXC would destroy it"):
        hand_over(made)
    assert migration.state is State.PREPARED


def test_what_lives_on_its_own_is(migration: Migration, guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest, "rootfs", Path("/"))
    made = dump_of(migration, guest)
    made.prepare()
    assert made.record().pid == guest.pid and stop_of(migration, guest).record().stopping is False


@pytest.fixture
def attached(cgroup: Path, init: subprocess.Popen[bytes]) -> int:
    """A process in its cgroup that its first one has not started: this one."""
    (cgroup / "cgroup.procs").write_text(f"{init.pid}\n{os.getpid()}\n")
    return os.getpid()


def freezing(made: Dump) -> None:
    made.prepare()
    made.migration.move(Event.FREEZE, **made.record().to_json())
    made._freeze()


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lxc, "freeze", lambda *_: None)
    monkeypatch.setattr(network, "silence", lambda *_: None)


@pytest.mark.usefixtures("frozen")
def test_what_was_attached_since_is_not_left_behind(migration: Migration, guest: Guest, attached: int) -> None:
    made = dump_of(migration, guest)
    with pytest.raises(ContainerChanged, match=f"process {attached} was started from outside"):
        freezing(made)
    made.standstill.ignore = ("attached-task",)
    made._freeze()


@pytest.mark.usefixtures("frozen")
def test_what_the_kernel_encrypts_since_is_not_sent_on_in_clear(migration: Migration, guest: Guest,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection has come between the last look and the freeze."""
    made = dump_of(migration, guest)
    monkeypatch.setattr(net_state, "_read", lambda path: {f"/proc/{guest.pid}/net/tls_stat": "TlsCurrTxSw 3\n"}[path])
    with pytest.raises(ContainerChanged, match="encrypts 3 of its connections"):
        freezing(made)
    made.standstill.ignore = ("kernel-encryption",)
    made._freeze()


@pytest.mark.usefixtures("frozen")
def test_nor_in_a_network_namespace_of_its_own(migration: Migration, guest: Guest, init: subprocess.Popen[bytes],
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    """CRIU dumps these too. Each is looked into once, and what has ended is in none."""
    made, read = dump_of(migration, guest), list[str]()
    made.standstill.ignore = ("attached-task",)

    def stat(path: str) -> str:
        read.append(path)
        return "TlsCurrRxSw 2\n"

    (guest.cgroup / "cgroup.procs").write_text("\n".join(map(str, [guest.pid, *range(5_000_000, 5_003_000)])))
    links = {f"/proc/{pid}/ns/net": f"net:[{pid % 3}]" for pid in range(5_000_000, 5_002_000)}
    monkeypatch.setattr(net_state, "link", lambda path: links.get(path, ""))
    monkeypatch.setattr(net_state, "_read", stat)
    monkeypatch.setattr(net_state, "run", lambda *_, **__: pytest.fail("a program was started"))
    with pytest.raises(ContainerChanged, match="encrypts 8 of its connections"):
        freezing(made)
    assert len(read) == 4, "three, and the first process's"
    links.update({f"/proc/{pid}/ns/net": f"net:[{pid}]" for pid in range(5_000_000, 5_001_000)})
    with pytest.raises(ContainerChanged, match="more than 64 network namespaces"):
        made._freeze()
    assert len(read) <= 4 + 64
    made.standstill.ignore += ("kernel-encryption",)
    made._freeze()


@pytest.mark.usefixtures("frozen")
def test_nor_what_is_attached_while_criu_has_it_thawed(migration: Migration, guest: Guest, cgroup: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    made = dump_of(migration, guest)
    freezing(made)
    monkeypatch.setattr(made, "_notes", dict)
    monkeypatch.setattr(made, "dump_command", list)
    monkeypatch.setattr(criu_dump, "dump",
                        lambda *_: (cgroup / "cgroup.procs").write_text(f"{guest.pid}\n{os.getpid()}\n"))
    with pytest.raises(ContainerChanged, match=f"process {os.getpid()} was started from outside"):
        made._dump()


@pytest.mark.usefixtures("frozen")
def test_nor_what_was_mounted_since(migration: Migration, guest: Guest, tmp_path: Path,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """The container's root runs on between the preflight and the freeze."""
    made = dump_of(migration, guest)
    freezing(made)
    made.images = tmp_path
    monkeypatch.setattr(made, "_notes", dict)
    monkeypatch.setattr(made, "dump_command", list)
    image = tmp_path / "mountpoints-11.img"
    monkeypatch.setattr(criu_dump, "dump", lambda *_: image.write_bytes(HEAD + entry(17, "./mnt")))
    with pytest.raises(DumpFailed, match="/mnt in it is a mount of the type overlay"):
        made._dump()
