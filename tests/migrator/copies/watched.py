# SPDX-License-Identifier: GPL-2.0-or-later
"""A watchdog, told one thing after the other, over a folder in the place of a cgroup."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from migrator.copies.thawing import Frozen
from migrator.copies.watchdog import Task, Watch
from migrator.errors.this_host import JournalBroken
from migrator.record.journal import Journal, Migration
from migrator.record.states import Event, Role

LIMIT = 120.0


@pytest.fixture
def cgroup(tmp_path: Path) -> Path:
    """A frozen one, as the kernel shows it but for the events, which do not follow."""
    folder = tmp_path / "cgroup"
    folder.mkdir()
    (folder / "cgroup.freeze").write_text("1")
    (folder / "cgroup.events").write_text("populated 1\nfrozen 1\n")
    return folder


@pytest.fixture
def migration(tmp_path: Path) -> Iterator[Migration]:
    """It is being dumped, for the second time."""
    with Journal(tmp_path / "journal.db") as journal:
        made = journal.create(id="0badc0de", role=Role.SOURCE, name="web", lxcpath=tmp_path, peer="root@hostb",
                              event=Event.SEND, attempt=2)
        made.move(Event.SENT)
        made.move(Event.FREEZE)
        yield made


def locks(migration: Migration) -> Path:
    return migration.lxcpath / "run" / "lock"


def task(migration: Migration, cgroup: Path, limit: float = LIMIT) -> Task:
    frozen = Frozen(migration.id, "web", migration.lxcpath, 1, cgroup, ())
    return Task(frozen, 2, (str(cgroup / "images"),), limit, str(migration.journal_path),
                str(locks(migration)))


class Told:
    """What happens to a watchdog, one thing after the other; a time lets the clock go on by as much."""

    def __init__(self, *what: str | float | Callable[[], object]) -> None:
        self.what = list(what)
        self.now = 1000.0

    def __call__(self, wait: float) -> str | None:
        while self.what and callable(self.what[0]):
            self.what.pop(0)()  # type: ignore[operator]
        while self.what and isinstance(self.what[0], float):
            self.now += min(wait, self.what[0])
            if self.what[0] > wait:
                self.what[0] -= wait
                return None
            wait -= self.what.pop(0)  # type: ignore[operator]
            while self.what and callable(self.what[0]):
                self.what.pop(0)()  # type: ignore[operator]
        if not self.what:
            return ""
        line = self.what.pop(0)
        return json.dumps({line: {"eth0": "1"} if line == "dad" else True})


def watched(made: Task, *what: str | float | Callable[[], object], answers: list[bool] | None = None) -> bool:
    told = Told(*what)
    return Watch(made, told, lambda: told.now, (answers if answers is not None else []).append).run()


def frozen(cgroup: Path) -> bool:
    return (cgroup / "cgroup.freeze").read_text() == "1"


class Unreadable:
    """The journal, for ever; the clock goes on with each look, for at most so many."""

    def __init__(self, patch: pytest.MonkeyPatch, looks: int = 2 * int(LIMIT)) -> None:
        self.looks = looks
        patch.setattr(Watch, "_is_still_being_dumped", self.broken)
        patch.setattr("migrator.copies.watchdog.time.sleep", lambda _seconds: self.sleep())

    def broken(self) -> bool:
        raise JournalBroken(path="journal.db", reason="disk I/O error")

    def sleep(self) -> None:
        self.told.now += 1
        self.looks -= 1
        if not self.looks:
            raise Never

    def watch(self, made: Task, *what: str | float) -> bool:
        self.told = Told(*what)
        return Watch(made, self.told, lambda: self.told.now, lambda _: None).run()


class Never(Exception):
    """It would wait on."""


def check(condition: bool) -> None:
    assert condition
