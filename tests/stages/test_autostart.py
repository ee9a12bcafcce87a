# SPDX-License-Identifier: GPL-2.0-or-later
"""A fence that is written while an lxc-autostart is under way holds nothing: nobody is offered the container then."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, cast

import pytest

from migrator import autostart, container_config, ending, lxc
from migrator.errors import OutOfOrder, SourceRunsAgain
from migrator.journal import Journal, Migration
from migrator.protocol import Connection
from migrator.states import State
from stages.stop import Stop
from tests.stages.test_handover import Plain, migration, thawed  # noqa: F401 -- fixtures
from tests.stages.test_heal import journal  # noqa: F401 -- a fixture
from tests.stages.test_offer import There
from tests.stages.test_standing import config

PID = 4242
AGAIN = "Next: once that has ended: migrator create-dump web -d root@hostb"


class Boot:
    """Its lxc-autostart, and the fence of each time that somebody has looked for it."""

    def __init__(self) -> None:
        self.under_way = False
        self.fences: list[str] = []

    def look(self, config: Path) -> int | None:
        self.fences.append(container_config.fence_of(config.read_text()))
        return PID if self.under_way else None


@pytest.fixture
def boot(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> Boot:
    found = Boot()
    monkeypatch.setattr(autostart, "under_way", lambda: found.look(journal.path.parent / "web" / "config"))
    return found


@pytest.fixture
def here(migration: Migration) -> Migration:
    """About to be brought to a stand."""
    config(migration).parent.mkdir()
    config(migration).write_text("lxc.start.auto = 1\n")
    return migration


class Begins(Plain):
    """One is begun while it stands still."""

    boot: Boot

    def take(self) -> dict[str, Any]:
        self.boot.under_way = True
        return super().take()


def test_nothing_is_frozen_in_vain(here: Migration, boot: Boot, thawed: list[State]) -> None:
    boot.under_way = True
    made = Plain(here)
    with pytest.raises(OutOfOrder, match=rf"lxc-autostart \(process {PID}\) is under way") as raised:
        made.run()
    assert raised.value.hint == AGAIN and here.state is State.PREPARED
    assert cast("There", made.there).asked == [] and made.done == [] and thawed == []


def test_one_that_has_begun_before_the_fence_stood_is_seen(here: Migration, boot: Boot, thawed: list[State]) -> None:
    made = Begins(here)
    made.fenced, made.boot = False, boot
    with pytest.raises(SourceRunsAgain, match="lxc-autostart"):
        made.run()
    assert boot.fences == ["", here.id], "once before the freeze, and once with the fence on disk"
    assert thawed == [State.DUMPING] and here.state is State.PREPARED
    assert [op for op, *_ in cast("There", made.there).asked] == ["dump-begin", "dump-drop"]
    assert config(here).read_text() == "lxc.start.auto = 1\n"


def test_what_is_not_stopped_yet_runs_on(here: Migration, boot: Boot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "stop", lambda *_: pytest.fail("it is stopped"))
    args = argparse.Namespace(max_downtime=120.0, one_shot=False, stop_timeout=1.0)
    container = lxc.Container.__new__(lxc.Container)
    container.name, container.lxcpath = here.name, here.lxcpath
    boot.under_way = True
    with pytest.raises(OutOfOrder):
        Stop(args, here, container, cast("Connection", There({}))).take()
    assert boot.fences == [here.id] and "stopping" not in here.detail
