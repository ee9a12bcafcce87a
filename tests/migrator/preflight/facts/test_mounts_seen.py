# SPDX-License-Identifier: GPL-2.0-or-later
"""What the check says of a container that has more mounted than is read: of a process that the test starts itself."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from migrator.host import mount_tables, net_state
from migrator.host.mountinfo import parse_mountinfo
from migrator.preflight.facts import container_facts, mounts_seen, task_facts
from migrator.preflight.facts.mounts_seen import Mounted, MountsSeen


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mount_tables, "LIMIT", 10)


@pytest.mark.usefixtures("little")
def test_it_is_told_and_nothing_is_made_of_what_is_missing(tmp_path: Path) -> None:
    with (tmp_path / "open").open("w") as file:
        tasks = task_facts.gather(os.getpid(), [os.getpid()])
        assert not file.closed
    assert not tasks.complete
    assert [(note.pid, note.count) for note in tasks.notes if note.kind == mounts_seen.TOO_MANY] == [(os.getpid(), 1)]
    assert "outside-file" not in {note.kind for note in tasks.notes}, "whose mount is unknown"


def test_nothing_is_told_otherwise() -> None:
    tasks = task_facts.gather(os.getpid(), [os.getpid()])
    assert tasks.complete and not any(note.kind == mounts_seen.TOO_MANY for note in tasks.notes)


def test_all_namespaces_count_together(monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(Path("/proc/self/mountinfo").read_bytes())
    monkeypatch.setattr(mount_tables, "LIMIT", 2 * size - 1)
    monkeypatch.setattr(mounts_seen, "link", lambda path: path)
    seen = MountsSeen()
    assert seen.by(os.getpid()).lines and seen.by(os.getpid()).lines, "each namespace once"
    assert seen.within(f"/proc/{os.getpid()}/ns/mnt").lines and not seen.within("another").lines
    assert seen.by(1 << 22).lines == [], "it has ended"
    assert seen.are_all and not seen.hold(1 << 40)
    monkeypatch.setattr(mounts_seen, "link", lambda path: f"another {path}")
    assert seen.by(os.getpid()).lines == []
    assert seen.too_many_for == os.getpid() and seen.hold(1 << 40)


def test_what_asks_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many mounts there are, and files for which it is asked."""
    text = "".join(f"{number} 1 0:9 / /mnt/{number} rw - fuse.x x rw\n" for number in range(2, 20_000))
    mounted = Mounted(parse_mountinfo(f"1 0 0:1 / / rw - btrfs x rw\n{text}7 1 0:1 /a /srv rw - btrfs x rw\n"))
    begun = time.process_time()
    for number in range(2, 20_000):
        assert mounted.may_wait(f"/mnt/{number}/a") and not mounted.may_wait(f"/mnt/{number}a")
    assert time.process_time() - begun < 5
    assert mounted.targets("0:1") == ["/", "/srv"] and mounted.targets("0:9") == [] == mounted.targets("0:8")


def test_the_terminals_of_lxc() -> None:
    assert Mounted(parse_mountinfo(
        "2 1 0:7 /3 /dev/console rw - devpts x rw\n3 1 0:7 / /dev/pts rw - devpts x rw\n"
        "4 1 0:7 /5 /srv/tty rw - devpts x rw\n5 1 0:8 /6 /dev/lxc/tty1 rw - tmpfs x rw\n")).ttys == {("0:7", 3)}


def test_one_mount_below_a_long_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is known before the container stands still."""
    class Tables(mount_tables.MountTables):
        def read(self, file: str | int) -> str:
            assert file == f"/proc/{os.getpid()}/mountinfo"
            return super().read(str(tmp_path / "mountinfo"))

    (tmp_path / "mountinfo").write_text(f"30 20 0:40 / /srv{'/a' * 20_000} rw - tmpfs tmpfs rw\n")
    monkeypatch.setattr(mount_tables, "MountTables", Tables)
    tasks = task_facts.gather(os.getpid(), [os.getpid()])
    assert not tasks.complete and mounts_seen.TOO_MANY in {note.kind for note in tasks.notes}


@pytest.mark.parametrize("later", [False, True])
def test_they_are_made_after_the_first_look(later: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Running:
        name, lxcpath, state, init_pid = "c1", tmp_path, "RUNNING", os.getpid()
        config_file, cgroup, is_ephemeral = tmp_path / "config", tmp_path / "no cgroup", False

    def gather(*_: object) -> task_facts.Tasks:
        if later:
            monkeypatch.setattr(mount_tables, "LIMIT", 10)
        return task_facts.Tasks()

    monkeypatch.setattr(net_state, "interfaces", lambda *_: ())
    monkeypatch.setattr(task_facts, "gather", gather)
    (tmp_path / "config").write_text(f"lxc.rootfs.path = dir:{tmp_path}\n")
    facts = container_facts.gather(Running(), full=False)  # type: ignore[arg-type]
    assert facts.tasks.complete is not later
    assert [(note.kind, note.pid) for note in facts.tasks.notes] == [(mounts_seen.TOO_MANY, os.getpid())] * later
    assert bool(facts.mounts) is not later
