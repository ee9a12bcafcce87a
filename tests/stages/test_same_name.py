# SPDX-License-Identifier: GPL-2.0-or-later
"""Two containers of one name, in two LXC paths: neither passes for the other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from migrator.base.process_id import Process
from migrator.errors.jobs import AbortElsewhere, BrokenOff
from migrator.errors.this_host import StillUnderWay
from migrator.record import container_lock
from migrator.record.journal import Journal
from migrator.record.migration_paths import locked
from migrator.record.states import Event, Role
from stages import abort, status, wait
from stages.steps import arguments
from stages.steps.options import NamedContainer


@pytest.fixture
def at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Journal]:
    """Both are under way; somebody works on the one in `pool`."""
    locks = tmp_path / "run" / "lock"
    monkeypatch.setattr(container_lock, "LOCKS", locks)
    with Journal(tmp_path / "journal.db") as journal:
        for number, folder in enumerate(("pool", "second")):
            (tmp_path / folder).mkdir()
            journal.create(id=f"0000000{number}", role=Role.SOURCE, name="web", lxcpath=tmp_path / folder,
                           peer="root@hostb", event=Event.SEND, rounds=[])
        with locked("web", lxcpath=tmp_path / "pool"):
            yield journal


def test_abort_stops_nobody_elses(at_work: Journal, tmp_path: Path) -> None:
    worker = abort._worker(at_work, "web", tmp_path / "pool")
    assert worker and (worker.pid, worker.started) == Process.current()
    assert abort._worker(at_work, "web", tmp_path / "second") is None


def test_abort_does_not_wait_for_who_answers_another_host(at_work: Journal, tmp_path: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """A destination has but asked what has become of it: that process may stay for as long as its connection."""
    answers = container_lock.Holder(1, 1, container_lock.SERVE)
    monkeypatch.setattr(container_lock, "of", lambda *_: answers)
    assert abort._worker(at_work, "web", tmp_path / "pool") is None
    at_work.create(id="0000000d", role=Role.DESTINATION, name="web", lxcpath=tmp_path / "third", peer="hosta",
                   event=Event.RECEIVE, rounds=[])
    with pytest.raises(AbortElsewhere):
        abort._worker(at_work, "web", tmp_path / "third")


def test_status_names_who_works_on_it(at_work: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "DEFAULT_PATH", at_work.path)
    monkeypatch.setattr(arguments, "require_root", lambda _: None)
    found = status.run(status.StatusOptions("web")).data["migrations"]
    told = {Path(each["lxcpath"]).name: each["working"] for each in found}
    assert told["pool"]["pid"] == os.getpid() and told["second"] is None


def test_wait_sees_that_nobody_works_on_it(at_work: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wait, "DEFAULT_PATH", at_work.path)
    monkeypatch.setattr(wait, "GRACE", dict.fromkeys(Role, 0.0))
    monkeypatch.setattr(arguments, "require_root", lambda _: None)
    for folder, timeout, error in (("pool", 0.05, StillUnderWay), ("second", 60.0, BrokenOff)):
        with pytest.raises(error):
            wait.run(wait.WaitOptions(NamedContainer("web", str(tmp_path / folder)), timeout))
