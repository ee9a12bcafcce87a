# SPDX-License-Identifier: GPL-2.0-or-later
"""A container that was handed over and stands still, and a destination that does what it is asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from migrator.config import container_config
from migrator.copies import leave, origins
from migrator.errors.containers import ContainerNotRunning
from migrator.host import lxc
from migrator.record.journal import Journal, Migration
from migrator.record.states import Event, State
from migrator.transfer.rpc import Connection
from migrator.transfer.wire_codec import Request
from stages.steps import freeze_and_offer
from stages.steps.options import MoveRequest, NamedContainer, StandstillOptions
from stages.steps.reconnect import Link
from tests.migrator.wire import by_op
from tests.stages.monitorless import Monitorless, frozen

OTHER_BOOT = "00000000-0000-4000-8000-000000000000"


class Known(Monitorless):
    """As LXC sees it: with its monitor, by the process that stands in for its first one."""

    pid = 0

    @property
    def state(self) -> str:  # type: ignore[override]
        return "RUNNING" if self.pid else "STOPPED"

    @property
    def init_pid(self) -> int:
        if not self.pid:
            raise ContainerNotRunning(name=self.name, lxcpath=self.lxcpath, state="STOPPED")
        return self.pid


class There:
    """A destination that does whatever it is asked."""

    peer_host = "hostb"

    def __init__(self, state: State = State.RECEIVING_DUMP) -> None:
        self.state = state
        self.asked: list[str] = []
        self.told = -1.0  # for how many seconds it may let it run

    @by_op
    def call(self, op: str, **_: Any) -> dict[str, Any]:
        self.asked.append(op)
        return {"state": self.state, "ticket": ""}

    def call_within(self, _limit: float, message: Request[Any]) -> Any:
        return self.call(message)

    @by_op
    def call_and_go(self, op: str, *, within: Callable[[], float], **_: Any) -> dict[str, Any]:
        self.asked.append(op)
        self.told = within()
        return {"state": State.OWNED, "running_for": 0.0}


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> type[Known]:
    class Here(Known):
        pass

    monkeypatch.setattr(lxc, "Container", Here)
    monkeypatch.setattr(origins, "is_source", lambda _: True)
    return Here


def config(migration: Migration) -> Path:
    return migration.lxcpath / migration.name / "config"


def handed_over(journal: Journal, folder: Path, pid: int, *, fence: bool = True, **detail: object) -> Migration:
    """Frozen and offered; its fence stands, or was taken away."""
    migration = frozen(journal, folder, pid, Event.OFFER, attempt=1, **detail)
    migration.note("leave", leave=leave.given(None, 60.0))
    config(migration).parent.mkdir()
    config(migration).write_text("lxc.start.auto = 1\n")
    if fence:
        container_config.fence(config(migration).parent, "lxc.start.auto = 1\n", migration.id, "no")
    return migration


REQUEST = MoveRequest(NamedContainer("web"), "root@hostb")


def offers_again(migration: Migration, there: There, *, one_shot: bool = False) -> None:
    link = Link(REQUEST.connect, REQUEST.destination, 0.0) if one_shot else None
    freeze_and_offer.carry_out(REQUEST, StandstillOptions(), migration,
                               lxc.Container(migration.name, migration.lxcpath), cast("Connection", there), link=link)
