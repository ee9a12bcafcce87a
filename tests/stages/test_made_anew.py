# SPDX-License-Identifier: GPL-2.0-or-later
"""On the source, a container that was made anew under its name between two rounds: a migration goes on with none."""



from __future__ import annotations

import shutil
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from migrator.config import container_config
from migrator.copies import origins
from migrator.errors.containers import ContainerChanged, OutOfOrder
from migrator.host import lxc
from migrator.record.journal import Journal, Migration
from migrator.record.states import Event, State
from stages.steps import ask_state, drive, examine, freeze_and_offer, same_host, send_disk
from stages.steps.drive_move import Move
from stages.steps.options import MoveOptions, MoveRequest, NamedContainer, StandstillOptions
from tests.migrator.layouts import layout_of
from tests.stages.downtimes import There
from tests.stages.gone import ANOTHER, ID, ITS_OWN, begun, host, put, subvolume
from tests.stages.journals import journal

__all__ = ["host", "journal"]

ROUNDS = [{"bytes": 1}, {"bytes": 1}]
REQUEST = MoveRequest(NamedContainer("web"), "root@hostb")


class GoesOn(Exception):
    """It came through."""


@pytest.fixture(autouse=True)
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The destination has all of the rounds; whether the preflight has looked."""
    done: list[str] = []

    def goes_on(*_: object, **__: object) -> None:
        raise GoesOn

    monkeypatch.setattr(ask_state, "state", lambda *_: State.IMPORTED)
    monkeypatch.setattr(ask_state, "ask", lambda *_: {"state": State.IMPORTED, "ticket": ""})
    monkeypatch.setattr(examine, "before_stage", lambda *_, **__: done.append("preflight"))
    monkeypatch.setattr(same_host, "require", goes_on)
    monkeypatch.setattr(freeze_and_offer, "require_running", goes_on)
    return done


def prepared(journal: Journal, **detail: object) -> Migration:
    return begun(journal, Event.SENT, **{"rounds": ROUNDS, "bridges": {}, "config_digest": "as it was", **detail})


def another_round(journal: Journal, migration: Migration) -> None:
    container: Any = lxc.Container("web", migration.lxcpath)
    send_disk.carry_out(REQUEST, journal, migration, container, There(), 0)  # type: ignore[arg-type]


def dump(migration: Migration) -> None:
    container: Any = lxc.Container("web", migration.lxcpath)
    freeze_and_offer.carry_out(REQUEST, StandstillOptions(), migration, container, There())  # type: ignore[arg-type]


def as_it_was(monkeypatch: pytest.MonkeyPatch, digest: str = "as it was") -> None:
    monkeypatch.setattr(container_config, "read", lambda *_: SimpleNamespace(digest=digest))


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("digest", ["as it was", "another"])
def test_it_is_not_gone_on_with(journal: Journal, monkeypatch: pytest.MonkeyPatch, digest: str, memory: bool) -> None:
    """It would inherit where the other one comes from, and the destination would drop the last copy of that."""
    as_it_was(monkeypatch, digest)
    migration = prepared(journal, memory=memory)
    put(migration, ANOTHER)
    steps: list[Callable[[], None]] = [lambda: another_round(journal, migration), lambda: dump(migration)]
    for step in steps:
        with pytest.raises(OutOfOrder, match="has a different root file system than the one that was sent") as refused:
            step()
        assert refused.value.hint == "Next: migrator rollback web"
    assert migration.state is State.PREPARED


@pytest.mark.parametrize("dropped", [False, True])
def test_what_was_sent_is(journal: Journal, monkeypatch: pytest.MonkeyPatch, dropped: bool) -> None:
    """Wherever its root file system lies by now; and where nothing tells it any more, as its snapshots were dropped."""
    as_it_was(monkeypatch)
    migration = prepared(journal)
    config = put(migration, ITS_OWN)
    (config.parent / "rootfs").rename(config.parent / "disk")
    honest: Any = lxc.Container.__init__

    def renamed(self: Any, *args: Any) -> None:
        honest(self, *args)
        self.rootfs = config.parent / "disk"

    monkeypatch.setattr(lxc.Container, "__init__", renamed)
    if dropped:
        for path in layout_of(migration).own_snapshots():
            shutil.rmtree(path)
    with pytest.raises(GoesOn):
        another_round(journal, migration)
    with pytest.raises(ContainerChanged if dropped else GoesOn):  # it has nothing to start from
        dump(migration)


def test_only_its_own_snapshots_tell(journal: Journal) -> None:
    """Nor what an earlier attempt has kept, of one that was called so then."""
    migration = prepared(journal)
    subvolume(layout_of(migration).snapshot(1).with_name("00000001.1"), "kept", ANOTHER)
    put(migration, ITS_OWN)
    assert not origins.is_another(migration)
    shutil.rmtree(layout_of(migration).container)
    assert not origins.is_another(migration), "there is none"
    put(migration)
    assert not origins.is_another(migration), "its disk is not there"
    shutil.rmtree(layout_of(migration).container)
    put(migration, ANOTHER)
    assert origins.is_another(migration)


def test_where_all_snapshots_were_dropped_an_earlier_dump_tells(journal: Journal) -> None:
    migration = prepared(journal, rootfs_uuid=ITS_OWN)
    for path in layout_of(migration).own_snapshots():
        shutil.rmtree(path)
    config = put(migration, ITS_OWN)
    assert not origins.is_another(migration)
    shutil.rmtree(config.parent)
    put(migration, ANOTHER)
    assert origins.is_another(migration)


def test_the_preflight_speaks_first(journal: Journal, monkeypatch: pytest.MonkeyPatch, looks: list[str]) -> None:
    """It tells where what runs still lives in what was sent, and how that can be put back."""
    migration = prepared(journal)
    put(migration, ANOTHER)
    with pytest.raises(OutOfOrder):
        dump(migration)
    assert looks == ["preflight"]


@pytest.mark.parametrize("uuid", [ITS_OWN, ANOTHER])
def test_the_driver_advises_one_thing(journal: Journal, uuid: str, capsys: pytest.CaptureFixture[str]) -> None:
    migration = prepared(journal)
    put(migration, uuid)
    container: Any = lxc.Container("web", migration.lxcpath)
    driver = drive.Drive(Move("migrate", REQUEST, MoveOptions(), journal, container, migration))
    with pytest.raises(OutOfOrder):
        driver._back.take(OutOfOrder(stage="create-dump", missing="x", next="migrator rollback web"))
    said = capsys.readouterr()
    assert ("Continue with" in said.out + said.err) is (uuid == ITS_OWN)
    assert migration.id == ID
