# SPDX-License-Identifier: GPL-2.0-or-later
"""A watchdog thaws what was frozen, and nothing that has come to its cgroup since: two containers of one name, in two
LXC paths, have it in turn, as have two starts of the same."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from migrator.base import process_id
from migrator.copies.thawing import Frozen
from migrator.copies.watchdog import Task
from migrator.host import network
from migrator.host.network import Port
from migrator.record import migration_paths
from migrator.record.journal import Migration
from tests.migrator.copies.watched import LIMIT, Unreadable, cgroup, frozen, locks, migration, task, watched

__all__ = ["cgroup", "migration"]


@contextlib.contextmanager
def first_process(*, ended: bool = False) -> Iterator[tuple[int, int]]:
    """Its id, and when it began."""
    with subprocess.Popen(["sleep", "600"]) as made:
        started = process_id.start_time(made.pid)
        try:
            if ended:
                made.kill()
                made.wait()
            yield made.pid, started
        finally:
            made.kill()


def of(made: Task, pid: int, started: int | None, ports: tuple[Port, ...] = ()) -> Task:
    return dataclasses.replace(made, frozen=dataclasses.replace(made.frozen, pid=pid, started=started, ports=ports))


@pytest.mark.parametrize("what", [("begins", 1.0), ("begins", LIMIT + 1, "dismissed"), ("begins", 1.0, "unreadable")],
                         ids=["alone", "too late", "journal"])
@pytest.mark.parametrize("whose", ["another", "ended", "its own", "an older version's"])
def test_what_has_its_cgroup_by_now_is_not_thawed(migration: Migration, cgroup: Path, monkeypatch: pytest.MonkeyPatch,
                                                  what: tuple[float | str, ...], whose: str) -> None:
    """Its owner has frozen it."""
    heard: list[str] = []
    monkeypatch.setattr(network, "hear", heard.append)
    monkeypatch.setattr(network, "plug", lambda *_: None)
    monkeypatch.setattr(network, "announce", lambda *_: SimpleNamespace(join=lambda: None))
    with migration_paths.locked("web", locks(migration), lxcpath=migration.lxcpath):
        pass  # as who froze it had
    with first_process(ended=whose == "ended") as (pid, started):
        started_at = {"another": started - 1, "an older version's": None}.get(whose, started)
        made = of(task(migration, cgroup), pid, started_at, (Port("eth0", "veth1", "br0"),))
        if what[-1] == "unreadable":
            Unreadable(monkeypatch).watch(made, *what[:-1])
        else:
            watched(made, *what)
    assert frozen(cgroup) is (whose in ("another", "ended"))
    assert set(heard) == {migration.id}, "what keeps its veths silent does not stay"


def test_without_a_free_descriptor_it_is_not_taken_for_gone(migration: Migration, cgroup: Path,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [OSError(errno.ENFILE, "Too many open files in system")] * 3
    look = process_id.start_time

    def start_time(pid: int) -> int:
        if failures and pid != os.getpid():
            raise failures.pop()
        return look(pid)

    monkeypatch.setattr("migrator.copies.watchdog.time.sleep", lambda _seconds: None)
    with first_process() as (pid, started):
        made = of(task(migration, cgroup), pid, started)
        monkeypatch.setattr(process_id, "start_time", start_time)
        assert watched(made, "begins", 1.0)
    assert not frozen(cgroup) and not failures


def test_which_start_it_is_goes_along(cgroup: Path) -> None:
    made = Frozen("0badc0de", "web", Path("/lxc"), 4711, cgroup, (Port("eth0", "veth1", "br0"),), {"eth0": "1"}, 99)
    told = Task(made, 1, (), LIMIT, "journal.db")
    assert Task.from_json(told.to_json()).frozen == made
    data = json.loads(told.to_json())
    del data["frozen"]["init"]
    assert Task.from_json(json.dumps(data)).frozen == dataclasses.replace(made, started=None)
    for init, started in (((4711, 5), 5), ((4712, 5), None), (None, None)):
        still = msgspec.structs.replace(made.recorded(), init=init)
        assert Frozen.on_record("0badc0de", "web", Path("/lxc"), still).started == started
