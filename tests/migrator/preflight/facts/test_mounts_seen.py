# SPDX-License-Identifier: GPL-2.0-or-later
"""What the check says of a container that has more mounted than is read: of a process that the test starts itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from migrator.host import mount_tables, net_state
from migrator.preflight.facts import container_facts, mounts_seen, task_facts
from migrator.preflight.facts.mounts_seen import MountsSeen


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
    assert seen.by(os.getpid()) and seen.by(os.getpid()), "each namespace once"
    assert seen.within(f"/proc/{os.getpid()}/ns/mnt") and not seen.within("another")
    assert seen.by(1 << 22) == [], "it has ended"
    assert seen.are_all and not seen.hold(1 << 40)
    monkeypatch.setattr(mounts_seen, "link", lambda path: f"another {path}")
    assert seen.by(os.getpid()) == []
    assert seen.too_many_for == os.getpid() and seen.hold(1 << 40)


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
