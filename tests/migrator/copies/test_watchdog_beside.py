# SPDX-License-Identifier: GPL-2.0-or-later
"""The watchdog thaws nothing beside another start of the container: two would write to one disk."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from migrator.base import process_id
from migrator.copies import second_start
from migrator.copies.watchdog import POLL, Task
from migrator.host import lxc, network
from migrator.host.network import Port
from migrator.record import migration_paths
from migrator.record.journal import Migration
from tests.migrator.copies.watched import LIMIT, cgroup, check, frozen, migration, task, watched  # noqa: F401 -- fixtures

SECOND = 7


def asked(*_: object) -> None:
    raise AssertionError("a monitor that does not answer would be waited for")


@pytest.fixture
def living(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The first processes of its starts, with one root; LXC's monitor of the frozen one was killed."""
    found = {os.getpid()}
    monkeypatch.setattr(lxc, "container_processes", lambda _: sorted(found))
    monkeypatch.setattr(second_start, "_is_beside", lambda pid, *_: pid == SECOND)
    monkeypatch.setattr(lxc, "Container", asked)
    return found


def ours(migration: Migration, cgroup: Path) -> Task:
    """This process stands for the first one of what is frozen."""
    (cgroup / "cgroup.procs").write_text(f"{os.getpid()}\n")
    made = task(migration, cgroup)
    pid = os.getpid()
    return dataclasses.replace(
        made, frozen=dataclasses.replace(made.frozen, pid=pid, started=process_id.start_time(pid)))


def test_left_alone_it_waits_until_either_has_ended(migration: Migration, cgroup: Path, living: set[int],
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is kept off the container meanwhile: who has it rolled back would wait for the end of this watchdog."""
    looks: list[int] = []
    locked: list[str] = []
    honest = migration_paths.locked

    def look(_seconds: float) -> None:
        check(frozen(cgroup) and not locked)
        looks.append(1)
        if len(looks) == 3:
            living.remove(SECOND)

    def lock(name: str, *args: Any, **fields: Any) -> Any:
        locked.append(name)
        return honest(name, *args, **fields)

    monkeypatch.setattr("migrator.copies.watchdog.time.sleep", look)
    monkeypatch.setattr("migrator.copies.watchdog.locked", lock)
    living.add(SECOND)
    assert watched(ours(migration, cgroup), "begins", 1.0)
    assert not frozen(cgroup) and len(looks) == 3 and locked == ["web"]


def test_one_that_comes_when_it_has_the_lock(migration: Migration, cgroup: Path, living: set[int],
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    honest = migration_paths.locked

    def look(_seconds: float) -> None:
        check(frozen(cgroup))
        looks.append(1)
        living.discard(SECOND)

    @contextlib.contextmanager
    def lock(name: str, *args: Any, **fields: Any) -> Iterator[Any]:
        with honest(name, *args, **fields) as last:
            if not looks:
                living.add(SECOND)
            yield last

    monkeypatch.setattr("migrator.copies.watchdog.time.sleep", look)
    monkeypatch.setattr("migrator.copies.watchdog.locked", lock)
    assert watched(ours(migration, cgroup), "begins", 1.0)
    assert not frozen(cgroup) and len(looks) == 1


def test_when_its_time_is_up_too(migration: Migration, cgroup: Path, living: set[int]) -> None:
    living.add(SECOND)
    answers: list[bool] = []
    assert watched(ours(migration, cgroup), "begins", LIMIT + 5 * POLL, lambda: check(frozen(cgroup)),
                   lambda: living.remove(SECOND), 2 * POLL, lambda: check(not frozen(cgroup)), "clock", "dismissed",
                   answers=answers)
    assert answers == [True]


def test_it_has_not_thawed_then(migration: Migration, cgroup: Path, living: set[int]) -> None:
    living.add(SECOND)
    answers: list[bool] = []
    assert not watched(ours(migration, cgroup), "begins", LIMIT + 1, "clock", "dismissed", answers=answers)
    assert frozen(cgroup) and answers == [False]


@pytest.mark.parametrize("rest", [(), (LIMIT + 1, "dismissed")])
def test_what_was_started_anew_in_its_place_is_left_alone(
        migration: Migration, cgroup: Path, living: set[int], monkeypatch: pytest.MonkeyPatch,
        rest: tuple[str | float, ...]) -> None:
    """The frozen one has ended, and the next start has its cgroup: its owner may have frozen that. It is heard."""
    heard: list[str] = []
    monkeypatch.setattr(network, "hear", heard.append)
    made = ours(migration, cgroup)
    started = (made.frozen.started or 0) - 1
    ports = (Port("eth0", "veth1", "br0"),)
    watched(dataclasses.replace(made, frozen=dataclasses.replace(made.frozen, started=started, ports=ports)),
            "begins", *rest)
    assert frozen(cgroup) and set(heard) == {migration.id}
