# SPDX-License-Identifier: GPL-2.0-or-later
"""The other host, with the answer that it gives to an offer; and what is done here then."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from migrator.config import container_config
from migrator.copies import origins
from migrator.host import btrfs
from migrator.record.journal import Migration
from migrator.record.migration_paths import Layout
from migrator.transfer.rpc import Connection
from stages.steps import thaw_again
from tests.migrator.wire import by_op


class There:
    """A destination that answers, or does not."""

    peer_host = "hostb"

    def __init__(self, answer: dict[str, Any] | Exception, look: Callable[[], object] = lambda: None) -> None:
        self.answer, self.look = answer, look  # what happens when it is asked
        self.asked: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
        self.told = -1.0  # for how many seconds it may go on

    def _ask(self, op: str, limits: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
        self.asked.append((op, limits, fields))
        self.look()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    @by_op
    def call(self, op: str, **fields: Any) -> dict[str, Any]:
        return self._ask(op, {}, fields)

    @by_op
    def call_within(self, limit: float, op: str, **fields: Any) -> dict[str, Any]:
        return self._ask(op, {"within": limit}, fields)

    @by_op
    def call_and_go(self, op: str, *, first: float, then: float, within: Callable[[], float],
                    **fields: Any) -> dict[str, Any]:
        answer = self._ask(op, {"first": first, "then": then}, fields)
        self.told = within()
        return answer


def connection(there: There) -> Connection:
    return cast("Connection", there)


@pytest.fixture
def acts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done here, in order; nothing of it is real but the fence and the images."""
    done: list[str] = []

    def thaw(migration: Migration) -> bool:
        done.append(f"thawed, {migration.state} on record")
        return True

    monkeypatch.setattr(thaw_again, "thaw_source", thaw)
    monkeypatch.setattr(origins, "is_there", lambda _: True)
    monkeypatch.setattr(btrfs, "delete", lambda path: done.append(f"deleted {path.name}"))
    monkeypatch.setattr(Layout, "drop_images", lambda _: done.append("images dropped"))
    unfence = container_config.unfence

    def unfenced(folder: Path, migration: str) -> None:
        done.append("unfenced")
        unfence(folder, migration)

    monkeypatch.setattr(container_config, "unfence", unfenced)
    return done


def fence(migration: Migration) -> Path:
    folder = migration.lxcpath / migration.name
    folder.mkdir()
    container_config.fence(folder, "lxc.uts.name = web\n", migration.id, "no")
    return folder


TAKEN_BACK = ["thawed, dumping on record", "images dropped", "deleted 0badc0de.1", "unfenced"]
