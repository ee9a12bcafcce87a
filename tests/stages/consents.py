# SPDX-License-Identifier: GPL-2.0-or-later
"""A peer with consent to hooks, and a container with one that it brings here, as far as it has come."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from migrator.host import btrfs
from migrator.record import grant
from migrator.record.grant import Grant
from migrator.record.journal import Migration
from migrator.record.states import Event, Role
from stages.steps import import_round
from stages.steps.standstill import INCREMENT
from tests.migrator.transfer.spools import store
from tests.stages.callers import HOOK, HOSTA, ID, Here, peer
from tunnel.identity import private_files
from tunnel.identity.peers import Peers

WITH, WITHOUT = ("receive", "hooks"), ("receive",)


@pytest.fixture
def peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Peers:
    monkeypatch.setattr(private_files, "STATE", tmp_path / "state")
    found = Peers(private_files.STATE / "peers")
    found.pin("hosta", HOSTA)
    found.allow("hosta", WITH)
    return found


@pytest.fixture(autouse=True)
def _no_disk(monkeypatch: pytest.MonkeyPatch, peers: Peers) -> None:
    monkeypatch.setattr(import_round, "receive", lambda *_: SimpleNamespace(uuid="made"))
    for name in ("sync", "delete"):
        monkeypatch.setattr(btrfs, name, lambda _: None)


def key(*words: str) -> Grant:
    return grant.of_only(",".join(words))


def arriving(here: Here) -> Migration:
    migration = here.journal.by_id(ID, Role.DESTINATION)
    assert migration
    return migration


def begun(here: Here, granted: Grant) -> Migration:
    """With a hook, as is allowed; its first round has arrived."""
    here.begun(granted, config=HOOK)
    arriving(here).move(Event.RECEIVED, rounds=[{"uuid": "x"}])
    return arriving(here)


def defined(here: Here) -> bool:
    return "hook.start-host" in (here.layout.container / "config").read_text()


CALLERS = pytest.mark.parametrize("caller", [key, lambda *words: peer("hosta", *words)], ids=["a key", "a peer"])


def imported(here: Here, granted: Grant) -> Migration:
    import_round.import_round(begun(here, granted), here.layout)
    assert defined(here)
    return arriving(here)


def dumped(here: Here) -> None:
    """All of dump 1 is here."""
    store(here.layout.spool / INCREMENT, b"increment")
    here.layout.image_folders()[1].mkdir()
    store(here.layout.image_folders()[1] / "core-1.img", b"core")
