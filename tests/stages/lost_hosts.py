# SPDX-License-Identifier: GPL-2.0-or-later
"""How another host fails to answer, and a host on which nothing is real that a force would do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from migrator.base import boot_clock
from migrator.copies import after_crash
from migrator.errors import MigratorError
from migrator.errors.connection import (
    ConnectionLost,
    HostKeyChanged,
    HostKeyUnknown,
    HostUnreachable,
    ProtocolError,
    RemoteMissing,
    SshRefused,
)
from migrator.errors.containers import NotKnownThere
from migrator.errors.documented import DocumentedError
from migrator.record import container_lock
from migrator.record.journal import Journal, Migration
from migrator.record.states import Event
from stages.steps import settling, stopped_here, thaw_again
from tests.stages.journals import owned
from tunnel.tunnel_errors import NoPath, PeerAbsent, PeerRefuses, PeerSilent, RendezvousUnavailable


def unreachable(*, silent: bool) -> HostUnreachable:
    error = HostUnreachable(destination="root@hostb", reason="no answer")
    error.silent = silent
    return error


def refused() -> HostUnreachable:
    error = unreachable(silent=False)
    error.answered = True
    return error


def not_known(*, another: bool) -> NotKnownThere:
    """Who answers does not know it, or has it from another migration than this one."""
    error = NotKnownThere(destination="hostx", id="0badc0de", name="web", peer="root@hostb")
    error.another = another
    return error


SILENT: list[DocumentedError] = [unreachable(silent=True)]
NOT_REACHED: list[DocumentedError] = [
    unreachable(silent=False), PeerAbsent(name="b", server="r"), PeerSilent(name="b", reason="nothing"),
]
UNKNOWN = [*NOT_REACHED, not_known(another=True)]
ALIVE: list[DocumentedError] = [
    refused(), HostKeyChanged(), HostKeyUnknown(), SshRefused(), RemoteMissing(), ProtocolError(),
    ConnectionLost(), NoPath(), PeerRefuses(), RendezvousUnavailable(), MigratorError(reason="?"),
    not_known(another=False),
]


@pytest.fixture(autouse=True)
def nothing_real(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """There is no container here; what would be done to it."""
    done: list[str] = []
    monkeypatch.setattr(thaw_again, "thaw_source", lambda _: done.append("thawed"))
    monkeypatch.setattr("migrator.copies.origins.is_there", lambda _: True)
    monkeypatch.setattr(after_crash, "where", lambda _: "It runs on here.")
    monkeypatch.setattr(settling, "stands_fenced", lambda _: False)
    monkeypatch.setattr(settling, "seems_fenced", lambda _: False)
    monkeypatch.setattr(stopped_here, "is_stopped", lambda _: False)
    monkeypatch.setattr(container_lock, "_interrupted", [])
    monkeypatch.setattr(container_lock, "LOCKS", tmp_path / "lock")
    yield done


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """This host's clock, which goes on only where somebody sleeps."""
    found = [1000.0]
    monkeypatch.setattr(boot_clock, "now", lambda: found[0])

    def sleep(seconds: float) -> None:
        found[0] += seconds

    monkeypatch.setattr("time.sleep", sleep)
    return found


def restored(journal: Journal) -> Migration:
    migration = owned(journal)
    migration.move(Event.RESTORE)
    migration.move(Event.RESTORED)
    return migration
