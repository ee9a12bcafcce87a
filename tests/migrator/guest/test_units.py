# SPDX-License-Identifier: GPL-2.0-or-later
"""Which container lxc-attach is sent into: the start that was prepared, for which root's monitor answers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from migrator.errors.containers import ContainerNotRunning
from migrator.errors.memory import GuestNotReady
from migrator.guest import acts, units
from migrator.host import lxc


class Container(SimpleNamespace):
    """One whose PID 1 is another one each time it is asked for, and at the end none that can be told."""

    name, lxcpath = "web", Path("/pool")
    inits: list[int]

    @property
    def init_pid(self) -> int:
        if not (pid := self.inits.pop(0)):  # as of a stranger who answers in its monitor's place
            raise ContainerNotRunning(name=self.name, lxcpath=self.lxcpath, state="STOPPED")
        return pid


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    made: list[Any] = []
    monkeypatch.setattr(units, "run", lambda argv, **_: made.append(list(argv)[7:]))
    monkeypatch.setattr(acts, "carry_out", lambda *_: [])
    return made


@pytest.mark.parametrize(("later", "reason"), [(0, "STOPPED"), (1, "restarted")])
@pytest.mark.parametrize("before", [0, 1])
def test_nobody_enters_what_another_answers_for(started: list[Any], later: int, reason: str, before: int) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as another:
        container = Container(inits=[os.getpid(), os.getpid(), *[os.getpid()] * before, later and another.pid])
        with pytest.raises(GuestNotReady, match=reason):
            units.restart(cast("lxc.Container", container), ["ssh.service"])
        another.kill()
    assert len(started) == before


def test_it_is_restarted(started: list[Any]) -> None:
    units.restart(cast("lxc.Container", Container(inits=[os.getpid()] * 4)), ["ssh.service"])
    units.undo(cast("lxc.Container", Container(inits=[os.getpid()] * 3)))
    assert started == [["systemctl", "daemon-reload"], ["systemctl", "restart", "--", "ssh.service"],
                       ["systemctl", "daemon-reload"]]
