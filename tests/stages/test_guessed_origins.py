# SPDX-License-Identifier: GPL-2.0-or-later
"""The origin of a container is what its sender alone knows: nobody finds it by trying."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from migrator.copies import origins
from migrator.copies.origins import Whose
from migrator.errors.connection import NotAllowed
from migrator.errors.containers import InvalidName
from migrator.host import btrfs
from migrator.preflight.facts import host_facts
from migrator.record import grant
from migrator.record.migration_paths import Layout
from migrator.record.states import Event, Role
from tests.stages.callers import ID, OTHER, Here, here, peer  # noqa: F401 -- a fixture

ORIGIN, UUID = "0000c350", "uuid of a snapshot"


@pytest.fixture
def secret(here: Here, monkeypatch: pytest.MonkeyPatch) -> Here:
    """A snapshot of a container that P has never had."""
    here.journal.create(id=OTHER, role=Role.SOURCE, name="db", lxcpath=here.pool, peer="hostc", event=Event.SEND,
                        rounds=[], origin=ORIGIN)
    folder = here.layout.folder
    monkeypatch.setattr(Layout, "bases", lambda _: [SimpleNamespace(path=Path(folder, f"{OTHER}.1"), stream_uuid=UUID)])
    gathered = host_facts.gather(host_facts.Query("/"))
    monkeypatch.setattr(origins, "whose", lambda _: Whose.NOBODYS)
    monkeypatch.setattr(btrfs, "is_subvolume", lambda _: False)
    monkeypatch.setattr(host_facts, "gather", lambda _: gathered)
    return here


@pytest.mark.parametrize("op", ["subvolumes", "begin", "facts"])
def test_it_may_name_only_so_many(secret: Here, op: str) -> None:
    ask = secret.caller(peer("hosta", "receive"))
    answered = 100

    def guess(number: int) -> Any:
        other = {"id": f"{number:08x}", "name": f"c{number}"} if op == "begin" else {}
        return ask(op, origin=f"{number + 9:08x}", **other)

    with pytest.raises(NotAllowed, match="too many containers"):
        for answered in range(100, 1000):
            guess(answered)
    assert answered - 100 == grant.ORIGINS_MAX
    for _ in range(3):
        guess(100)  # it has asked about that one already
    with pytest.raises(NotAllowed, match="too many containers"):
        ask(op, origin=ORIGIN)


def test_the_other_ways_count_too(secret: Here) -> None:
    ask = secret.caller(peer("hosta", "receive"))
    for number in range(grant.ORIGINS_MAX):
        ask("subvolumes", origin=f"{number:08x}")
    for op in ("begin", "facts", "subvolumes"):
        with pytest.raises(NotAllowed, match="too many containers"):
            ask(op, origin=ORIGIN)


def test_a_migration_keeps_the_origin_that_it_began_with(secret: Here) -> None:
    ask = secret.begun(peer("hosta", "receive"), origin=ID)
    assert ask("begin", origin=ORIGIN)["subvolumes"] == []
    known = secret.journal.by_id(ID, Role.DESTINATION)
    assert known and known.begun.origin == ID


def asked(ask: Callable[..., Any]) -> list[str]:
    return list(ask("subvolumes", origin=ORIGIN)["subvolumes"])


def test_who_knows_it_is_answered(secret: Here) -> None:
    assert asked(secret.caller(peer("hosta", "receive"))) == [UUID]
    root = secret.caller(grant.ROOT)
    for number in range(10 * grant.ORIGINS_MAX):
        root("subvolumes", origin=f"{number:08x}")
    assert asked(root) == [UUID]


def test_one_that_is_none_is_refused(secret: Here) -> None:
    for op in ("subvolumes", "begin", "facts"):
        with pytest.raises(InvalidName):
            secret.caller(peer("hosta", "receive"))(op, origin="../..")
    for op in ("subvolumes", "facts"):  # of a container that has never moved
        secret.caller(peer("hosta", "receive"))(op, origin="")
