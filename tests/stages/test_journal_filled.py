# SPDX-License-Identifier: GPL-2.0-or-later
"""How much of the journal another host can fill by asking."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from migrator.errors import UsageError
from migrator.errors.connection import NotAllowed, ProtocolError
from migrator.errors.data import NoSpace
from migrator.errors.memory import DumpRefused
from migrator.record import grant
from migrator.record.journal import Migration
from migrator.record.states import Event, Role, State
from migrator.transfer import messages
from stages import cleanup
from stages.steps import take
from tests.stages.answering import Destination, arrives, at_the_dump, pool, there
from tests.stages.callers import HOSTA, ID, OTHER, Here, dumped, goes_out, here, peer  # noqa: F401 -- a fixture

__all__ = ["pool", "there"]


def steps(migration: Migration | None) -> list[str]:
    assert migration
    return [each.step for each in migration.events()]


def arrived(there: Destination) -> Migration | None:
    return there.journal.by_id(ID, Role.DESTINATION)


@pytest.mark.parametrize("dad", [
    {f"i{n:x}": 1 for n in range(take.INTERFACES_MAX + 1)}, {"eth0": 1 << 31}, {"eth0": -10**9999},
])
def test_an_offer_that_is_too_long_is_refused_for_good(there: Destination, dad: dict[str, int]) -> None:
    at_the_dump(there)
    arrives(there)
    with pytest.raises(DumpRefused, match=r"interfaces|accept_dad"):
        there.ask("own", dad=dad)
    assert there.state is State.IMPORTED
    with pytest.raises(DumpRefused, match="does not expect dump 1"):
        there.ask("own")


def test_an_offer_may_have_many_interfaces(there: Destination) -> None:
    at_the_dump(there)
    arrives(there)
    there.ask("own", dad={f"i{n:x}": "1" for n in range(take.INTERFACES_MAX)})
    found = arrived(there)
    assert found and found.state is State.OWNED and len(found.still.dad) == take.INTERFACES_MAX


def test_what_is_asked_for_again_is_recorded_once(there: Destination) -> None:
    at_the_dump(there)
    before = steps(arrived(there))
    for _ in range(5):
        transfer(there, "increment")
    assert steps(arrived(there)) == [*before, "increment"]
    for number in range(2, 7):
        with pytest.raises(DumpRefused):
            there.ask("own", attempt=number)
    found = arrived(there)
    assert steps(found) == [*before, "increment", "refused", "drop-dump", "refused"]
    assert found and found.handover.attempt == 6  # the last word on each of them
    with pytest.raises(UsageError, match="number above"):
        there.ask("dump-begin", attempt=10**4000)


def transfer(there: Destination, kind: str) -> Any:
    from stages import create_dump
    from stages.steps import take_disk

    asked = messages.transfer({"id": ID, "kind": kind, "attempt": 1, "uuid": "x" * 99, "round": 1, "bytes": 10})
    return (create_dump.RECEIVERS | take_disk.RECEIVERS)[type(asked)](there.service, asked)


def test_the_same_state_again_is_recorded_once(here: Here) -> None:
    migration = dumped(goes_out(here))
    for number in range(3):
        migration.note("leave", anew=True, attempt=number)
    migration.note("other")
    migration.note("leave", anew=True, attempt=7)
    assert steps(migration)[-3:] == ["leave", "other", "leave"]
    assert [each.detail["attempt"] for each in migration.events()[-3::2]] == [2, 7]


def test_an_end_that_is_asked_for_again_is_recorded_once(here: Here) -> None:
    ask = here.begun(peer("hosta", "receive"))
    assert ask("abandon")["state"] == State.ABANDONED
    assert steps(here.journal.by_id(ID, Role.DESTINATION)) == ["receive", "abandon", "abandoned"]
    migration = here.journal.create(id="00000009", role=Role.DESTINATION, name="db", lxcpath=here.pool, peer="x",
                                    event=Event.RECEIVE)
    for _ in range(3):
        migration.move(Event.ABANDON)
    assert steps(migration) == ["receive", "abandon"]


def test_a_destination_that_asks_on_and_on(here: Here) -> None:
    migration = dumped(goes_out(here, destination_fingerprint=HOSTA.fingerprint))
    before = steps(migration)
    for _ in range(5):
        assert here.caller(peer("hosta"))("source-state", within=5.0)["leave"] == 5.0
    assert steps(migration) == [*before, "leave"]


def filled(migration: Migration | None, count: int, size: int) -> None:
    assert migration
    with migration.journal.transaction() as db:
        for _ in range(count):
            migration._insert_event(db, time.time(), "x", "done", {"x": "y" * size})


@pytest.mark.parametrize(("count", "size"), [(grant.EVENTS_MAX, 0), (9, grant.EVENTS_SIZE // 8)])
def test_nothing_more_begins_where_too_much_has_happened(here: Here, count: int, size: int) -> None:
    granted = peer("hosta", "receive")
    ask = here.begun(granted)
    migration = here.journal.by_id(ID, Role.DESTINATION)
    filled(migration, count, size)
    assert migration
    with pytest.raises(NotAllowed, match="too much has happened"):
        ask("transfer")
    migration.move(Event.RECEIVED, rounds=[{"uuid": "x"}])
    with pytest.raises(NotAllowed, match="too much has happened"):
        ask("import")
    migration.move(Event.IMPORT)
    migration.move(Event.IMPORTED)
    here.layout.container.mkdir()
    with pytest.raises(NotAllowed, match="too much has happened"):
        ask("dump-begin")
    migration.move(Event.RECEIVE_DUMP, attempt=1, memory=True)
    here.stack.callback(here.layout.drop_images)
    with pytest.raises(NotAllowed, match="too much has happened"):
        ask("transfer", kind="images")
    length = migration.length()
    assert ask("abandon")["state"] == State.ABANDONED, "what gives back is recorded for ever"
    assert migration.length() > length


def test_root_may_go_on(here: Here) -> None:
    ask = here.begun(grant.ROOT)
    filled(here.journal.by_id(ID, Role.DESTINATION), grant.EVENTS_MAX, 0)
    with pytest.raises(Exception, match=r".+") as raised:
        ask("import")
    assert not isinstance(raised.value, NotAllowed)


def test_the_word_is_not_given_for_ever_but_a_rollback_is_recorded(here: Here) -> None:
    migration = dumped(goes_out(here, destination_fingerprint=HOSTA.fingerprint))
    filled(migration, grant.EVENTS_MAX, 0)
    ask = here.caller(peer("hosta"))
    with pytest.raises(NotAllowed, match="too much has happened"):
        ask("source-state", within=5.0)
    assert ask("source-state")["state"] == State.DUMPED
    migration.move(Event.ROLL_BACK, forced=True, abandoned=False)
    migration.move(Event.ROLLED_BACK)
    assert ask("source-state", never=True)["state"] == State.ROLLED_BACK
    migration.refresh()
    assert migration.ending.abandoned is True


@pytest.mark.parametrize("ended", [False, True])
def test_all_of_a_callers_migrations_together_tell_only_so_much(here: Here, ended: bool) -> None:
    """Each may tell much, an end frees nothing of that, and a caller may have thousands."""
    granted, least = peer("hosta", "receive"), grant.EVENTS_SIZE // 2
    ask = here.begun(granted)
    before = grant.TOLD_MAX // least
    for number in range(before):
        other = f"000001{number:02x}"
        here.begun(granted, other, name=f"web{number}")
        filled(here.journal.by_id(other, Role.DESTINATION), 1, least)
        if ended:
            ask("abandon", id=other, name=f"web{number}")
    for op, fields in (("begin", {"id": OTHER, "name": "db"}), ("transfer", {})):
        with pytest.raises(NotAllowed, match="too much is recorded about its migrations") as refused:
            ask(op, **fields)
        assert "migrator cleanup --forget" in refused.value.hint
    here.begun(peer("hostc", "receive"), OTHER, name="shop")  # others are not hit
    if ended:
        cleanup.forget(here.journal)
        assert ask("transfer", files=[{"name": "disk-1", "size": None}])
    assert ask("abandon")["state"] == State.ABANDONED


def test_the_journals_disk_is_not_filled(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is another one than the containers'."""
    granted, honest, full = peer("hosta", "receive"), os.statvfs, False

    def statvfs(path: Path) -> Any:
        if full and path == here.journal.path.parent:
            return SimpleNamespace(f_blocks=100 << 30, f_frsize=1, f_bavail=(1 << 30) - 1)
        return honest(path)

    monkeypatch.setattr(os, "statvfs", statvfs)
    ask, root = here.begun(granted), here.caller(grant.ROOT)
    here.begun(granted, OTHER, name="db")
    migration = here.journal.by_id(OTHER, Role.DESTINATION)
    assert migration
    for event in (Event.RECEIVED, Event.IMPORT, Event.IMPORTED):
        migration.move(event)
    full = True
    for op, fields in (("begin", {"id": "00000003", "name": "shop"}), ("transfer", {}), ("dump-begin", {"id": OTHER})):
        with pytest.raises(NoSpace, match=r"1\.0 GiB is needed for what must stay free"):
            ask(op, **fields)
    assert root("begin", id="00000003", name="shop")["state"] == State.RECEIVING
    for id_ in (ID, OTHER):
        assert ask("abandon", id=id_)["state"] == State.ABANDONED


@pytest.mark.parametrize("number", [-1, 1 << 63, 10**4000], ids=["less than none", "too many", "a long number"])
def test_a_disk_cannot_grow_for_ever(here: Here, number: int) -> None:
    """What is announced for it is recorded each time that it has doubled."""
    ask = here.caller(grant.ROOT)
    with pytest.raises(ProtocolError, match="disk_bytes"):
        ask("begin", disk_bytes=number)
    assert here.journal.all() == []
    ask("begin")
    with pytest.raises(ProtocolError, match="disk_bytes"):
        ask("begin", disk_bytes=number)
    assert steps(here.journal.by_id(ID, Role.DESTINATION)) == ["receive"]
