# SPDX-License-Identifier: GPL-2.0-or-later
"""Ctrl-C, pressed by the test at a certain moment of a rollback or a migration."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from migrator import __main__ as program
from migrator.copies import after_crash, remains
from migrator.host import lxc
from migrator.record import container_lock
from migrator.record.journal import Journal, Migration
from stages.steps import give_back, thaw_again
from stages.steps.drive import Drive
from stages.steps.drive_move import Move
from stages.steps.options import MoveOptions, MoveRequest, NamedContainer


def press() -> None:
    """Ctrl-C; Python's handler has run when this returns. A second one would end this process."""
    if container_lock._interrupted:
        pytest.fail("the first one has ended nothing")
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(autouse=True)
def handlers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Those of the program, and no signal so far."""
    numbers = (*program._BY_HAND, container_lock.ABORT)
    before = {number: signal.getsignal(number) for number in numbers}
    monkeypatch.setattr(container_lock, "_interrupted", [])
    for number in numbers:
        signal.signal(number, program._interrupt)
    yield
    for number, each in before.items():
        signal.signal(number, each)


@pytest.fixture
def acts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a rollback does, in order; Ctrl-C is pressed while it thaws."""
    done: list[str] = []

    def thaw(migration: Migration) -> bool:
        done.append(f"begins to thaw, {migration.state}")
        press()
        done.append("thawed")
        return True

    monkeypatch.setattr(thaw_again, "thaw_source", thaw)
    monkeypatch.setattr(give_back, "drop_attempt", lambda *_: done.append("dropped"))
    monkeypatch.setattr(after_crash, "where", lambda _: "")
    monkeypatch.setattr(remains, "first_is_here", lambda _: True)
    return done


def driven(journal: Journal, migration: Migration, monkeypatch: pytest.MonkeyPatch,
           fails: Callable[[], None]) -> Drive:
    container = lxc.Container.__new__(lxc.Container)
    container.name, container.lxcpath = migration.name, migration.lxcpath
    request = MoveRequest(NamedContainer("web"), "root@hostb")
    drive = Drive(Move("migrate", request, MoveOptions(), journal, container, migration))
    monkeypatch.setattr(drive, "_ahead", fails)
    monkeypatch.setattr(drive._back, "_tell", press_and_tell)
    return drive


def press_and_tell() -> str:
    press()
    return ""
