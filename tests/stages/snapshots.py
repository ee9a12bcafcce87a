# SPDX-License-Identifier: GPL-2.0-or-later
"""What a rollback finds: folders in the place of subvolumes, a destination that answers, an earlier attempt."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from migrator.base.result import Result
from migrator.config import container_config
from migrator.copies import after_crash, origins
from migrator.errors.connection import ConnectionLost
from migrator.host import btrfs
from migrator.host.btrfs import Subvolume
from migrator.record.journal import Journal, Migration
from migrator.record.migration_paths import locked
from migrator.record.states import Event, Role
from migrator.transfer.rpc import Connection
from migrator.transfer.wire_codec import Request
from stages import rollback
from stages.steps import give_back, prologue, thaw_again
from stages.steps.options import EndOptions, NamedContainer
from tests.migrator.layouts import layout_of
from tests.migrator.wire import by_op

SENT = "11111111-2222-3333-4444-555555555555"
CUT = ConnectionLost(destination="root@hostb", reason="cut")


@pytest.fixture(autouse=True)
def disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders in the place of subvolumes; the uuid of each is what its file `uuid` says, and `of` its parent's."""

    def info(path: Path) -> Subvolume:
        of = path / "of"
        return Subvolume(path, uuid=(path / "uuid").read_text(), received_uuid="", read_only=True,
                         generation=int(path.suffix[1:] or 0), parent_uuid=of.read_text() if of.exists() else "")

    def delete(path: Path) -> None:
        if path.exists():
            shutil.rmtree(path)

    monkeypatch.setattr(btrfs, "is_subvolume", Path.is_dir)
    monkeypatch.setattr(btrfs, "info", info)
    monkeypatch.setattr(btrfs, "delete", delete)


def snapshot(migration: Migration, number: int, uuid: str) -> Path:
    path = layout_of(migration).snapshot(number)
    path.mkdir(parents=True)
    (path / "uuid").write_text(uuid)
    return path


def fence(migration: Migration) -> Callable[[], str]:
    folder = migration.lxcpath / migration.name
    folder.mkdir()
    container_config.fence(folder, "lxc.uts.name = web\n", migration.id, "no")
    return lambda: container_config.fence_of((folder / "config").read_text())


@pytest.fixture
def thaws(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The state on record at each thaw, of a container that is in its place."""
    done: list[str] = []

    def thaw(migration: Migration) -> bool:
        found = migration.journal.by_id(migration.id, migration.role)
        assert found
        done.append(str(found.state))
        return True

    monkeypatch.setattr(thaw_again, "thaw_source", thaw)
    monkeypatch.setattr(origins, "is_there", lambda _: True)
    monkeypatch.setattr(after_crash, "where", lambda _: "It runs on here.")
    return done


def refuses(error: Exception) -> Callable[..., str]:
    def tell(*_: object) -> str:
        raise error
    return tell


def recorded(migration: Migration) -> Migration:
    found = migration.journal.by_id(migration.id, migration.role)
    assert found
    return found


def earlier(journal: Journal, migration: Migration, id_: str, peer: str = "root@hostb") -> tuple[Migration, Path]:
    """One of the same container that was given up before, with the base that it has kept."""
    made = journal.create(id=id_, role=migration.role, name="web", lxcpath=migration.lxcpath, peer=peer,
                          event=Event.SEND if migration.role is Role.SOURCE else Event.RECEIVE, rounds=[],
                          origin=migration.begun.origin or migration.id)
    base = snapshot(made, 1, "0" * 8 + SENT[8:])
    for event in ((Event.ROLL_BACK, Event.ROLLED_BACK) if migration.role is Role.SOURCE
                  else (Event.ABANDON, Event.ABANDONED)):
        made.move(event, kept=[base.name], abandoned=True)
    return made, base


class There:
    peer_host = "hostb"

    def __init__(self, answer: dict[str, Any]) -> None:
        self.answer = answer
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def call_within(self, _: float, message: Request[Any]) -> Any:
        return self.call(message)

    @by_op
    def call(self, op: str, **fields: Any) -> dict[str, Any]:
        self.asked.append((op, fields))
        return self.answer


def tell(migration: Migration, there: There) -> str:
    return give_back.tell(migration, cast("Connection", there))


@pytest.fixture
def typed(journal: Journal, monkeypatch: pytest.MonkeyPatch, thaws: list[str],
          tmp_path: Path) -> Callable[..., Result]:
    """`migrator rollback web` on this host; nobody can be reached."""
    monkeypatch.setattr(prologue, "DEFAULT_PATH", journal.path)
    monkeypatch.setattr(give_back, "connected", refuses(CUT))
    monkeypatch.setattr(prologue, "locked", lambda name, **fields: locked(name, tmp_path / "run" / "lock", **fields))
    monkeypatch.setattr("os.geteuid", lambda: 0)

    def run(**more: Any) -> Result:
        return rollback.run(EndOptions(NamedContainer("web", str(tmp_path)), **more))

    return run
