# SPDX-License-Identifier: GPL-2.0-or-later
"""A container that reboots between the preparations and the freeze: the watchdog knows only the start it was told."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import concurrent.futures.thread
import contextlib
import itertools
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any, cast

import pytest

from migrator.base import boot_clock, process_id
from migrator.errors import Interrupted, MigratorError
from migrator.errors.containers import ContainerChanged
from migrator.errors.outcomes import SourceRunsAgain
from migrator.host import btrfs, lxc, network
from migrator.record.journal import Migration
from migrator.record.states import State
from stages.steps import dump, offer, send_memory, thaw_again
from stages.steps.standstill import Standstill
from tests.stages.dumps import Guest, dump_of, guest, hand_over, migration  # noqa: F401 -- fixtures
from tests.stages.journals import journal  # noqa: F401 -- a fixture
from tests.stages.monitorless import cgroup, init  # noqa: F401 -- fixtures


@contextlib.contextmanager
def another_start() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"]) as program:
        try:
            yield program
        finally:
            program.kill()


def test_one_that_has_rebooted_since_it_was_prepared_is_not_frozen(
        migration: Migration, guest: Guest, cgroup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = dump_of(migration, guest)
    with another_start() as another:
        def reboots(_: object) -> None:
            guest.pid = another.pid
            (cgroup / "cgroup.procs").write_text(f"{another.pid}\n")

        monkeypatch.setattr(btrfs, "sync", reboots)  # the last that is done before
        monkeypatch.setattr(lxc, "freeze", lambda *_: pytest.fail("frozen"))
        with pytest.raises(ContainerChanged, match="rebooted"):
            hand_over(made)
    assert migration.state is State.PREPARED and cast("Any", made).watchdog.told == ["dismissed"]


def test_one_that_reboots_as_it_is_frozen_is_thawed_at_once(
        migration: Migration, guest: Guest, cgroup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = dump_of(migration, guest)
    states: list[str] = []
    monkeypatch.setattr(btrfs, "sync", lambda _: None)

    def give_up(_m: Migration, _t: object, error: MigratorError, _a: object) -> None:
        states.append((cgroup / "cgroup.freeze").read_text())
        raise error

    monkeypatch.setattr(offer, "give_up", give_up)
    with another_start() as another:
        def freeze(*_: object) -> None:
            guest.pid = another.pid
            (cgroup / "cgroup.procs").write_text(f"{another.pid}\n")
            (cgroup / "cgroup.freeze").write_text("1")

        monkeypatch.setattr(lxc, "freeze", freeze)
        with pytest.raises(ContainerChanged, match="rebooted"):
            hand_over(made)
    assert states == ["0"]


def test_one_that_has_not_is_frozen(migration: Migration, guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    made = dump_of(migration, guest)
    monkeypatch.setattr(btrfs, "sync", lambda _: None)
    monkeypatch.setattr(lxc, "freeze", lambda *_: None)
    monkeypatch.setattr(thaw_again, "thaw_source", lambda _: True)
    with pytest.raises(SourceRunsAgain, match="it was dumped"):
        hand_over(made)
    assert migration.still.init == (guest.pid, process_id.start_time(guest.pid))
    assert migration.still.boot == boot_clock.BOOT_ID.read_text().strip()


@pytest.mark.parametrize("where", ["inner", "system.slice/redis.service"])
def test_what_was_frozen_in_it_since_is_not_dumped(
        migration: Migration, guest: Guest, cgroup: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """CRIU would wait for it without an end, and nobody would give the container back as long as it does."""
    made = dump_of(migration, guest)
    monkeypatch.setattr(btrfs, "sync", lambda _: None)
    monkeypatch.setattr(network, "silence", lambda *_: pytest.fail("went on"))
    monkeypatch.setattr(thaw_again, "thaw_source", lambda _: True)

    def freeze(*_: object) -> None:
        inner = cgroup / where
        inner.mkdir(parents=True)
        (inner / "cgroup.freeze").write_text("1\n")
        (inner / "cgroup.events").write_text("populated 1\nfrozen 1\n")

    monkeypatch.setattr(lxc, "freeze", freeze)
    with pytest.raises(SourceRunsAgain, match="is frozen") as raised:
        hand_over(made)
    assert isinstance(raised.value.cause, ContainerChanged) and f"{cgroup}/{where}" in str(raised.value)
    assert (cgroup / where / "cgroup.freeze").read_text() == "1\n", "it is the container's own affair"


CODE = (dump.__file__, concurrent.futures.thread.__file__)


class Pressed:
    """A Ctrl-C before the `number`-th line that Python takes in the dump, its pool, or the start of a thread.

    Not where a `with` ends, for which it goes back to its line: no signal is taken there before what that has locked
    is free.
    """

    def __init__(self, number: int) -> None:
        self.left = number
        self._lines: dict[FrameType, int] = {}

    def __call__(self, frame: FrameType, event: str, _argument: object) -> Pressed | None:
        if frame.f_code.co_filename not in CODE and frame.f_code is not threading.Thread.start.__code__:
            return None
        if event == "line":
            forward = frame.f_lineno > self._lines.get(frame, 0)
            self._lines[frame] = frame.f_lineno
            self.left -= forward
            if self.left < 0:
                sys.settrace(None)
                raise Interrupted(signal="SIGINT", number=signal.SIGINT)
        return self


def test_wherever_ctrl_c_comes_no_dump_is_under_way_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is thawed then. CRIU would freeze it once more at its end, as it was when that had begun."""
    monkeypatch.setattr(send_memory, "send_pages", lambda *_: {})
    seen = set()
    for number in itertools.count():
        done: list[str] = []
        made = dump.Dump.__new__(dump.Dump)

        def dumps(done: list[str] = done) -> float:
            done.append("begins")
            time.sleep(0.005)
            done.append("ends")
            return 0.0

        monkeypatch.setattr(made, "_freeze", lambda: None)
        monkeypatch.setattr(made, "_dump", dumps)
        made.standstill = cast("Standstill", SimpleNamespace(send_increment=lambda: None, left=lambda: 1 / 0))
        made.images, made.facts = Path("images"), cast("Any", SimpleNamespace(memory=0))
        before, threads = sys.gettrace(), set(threading.enumerate())
        sys.settrace(pressed := Pressed(number))
        try:
            made.take()
        except (Interrupted, ZeroDivisionError):
            done.append("thawed")
        finally:
            sys.settrace(before)
        for thread in {*threading.enumerate()} - threads:
            if thread.ident:
                thread.join(0.1)  # one that has nothing to do may wait for ever
        assert done in (["thawed"], ["begins", "ends", "thawed"]), number
        seen.add(len(done))  # how far it has come
        if pressed.left >= 0:
            break
    assert number > 30 and seen == {1, 3}
