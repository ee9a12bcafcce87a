# SPDX-License-Identifier: GPL-2.0-or-later
"""A copy was told that its source takes it back, and that has come to nothing: its fence says so still, and it runs."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from migrator.config import container_config
from migrator.errors.connection import ConnectionLost
from migrator.errors.ownership import TwoCopies
from migrator.host import lxc
from migrator.record import lxc_disk
from migrator.record.journal import Journal, Migration
from migrator.record.states import Event, Role, State
from stages.steps import ask_source, resume_destination, settling
from stages.steps.ask_source import Asking
from tests.stages.journals import journal  # noqa: F401 -- a fixture

LOST = ConnectionLost(destination="hosta", reason="cut")


@pytest.fixture
def here(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> Migration:
    """As an earlier `resume` has fenced it, which was killed, or refused since an lxc-autostart was under way."""
    migration = journal.create(id="feedface", role=Role.DESTINATION, name="web", lxcpath=journal.path.parent,
                               peer="hosta", event=Event.RECEIVE, rounds=[], destination="root@hostb")
    for event in (Event.RECEIVED, Event.IMPORT, Event.IMPORTED, Event.RECEIVE_DUMP, Event.DUMP_RECEIVED, Event.OWN,
                  Event.RESTORE, Event.RESTORED):
        migration.move(event)
    folder(migration).mkdir()
    container_config.fence(folder(migration), "lxc.uts.name = web\n", migration.id,
                           f"web runs on hosta again. {container_config.SUPERSEDED} web")
    for module, name, said in ((settling, "has_left", False), (settling, "stands_stopped", False),
                               (settling, "is_gone", False), (lxc_disk, "is_removed", False)):
        monkeypatch.setattr(module, name, lambda *_, said=said: said)
    monkeypatch.setattr(lxc, "Container", lambda *_: SimpleNamespace(state="RUNNING"))
    return migration


def folder(migration: Migration) -> Path:
    return migration.lxcpath / migration.name


@pytest.mark.parametrize(("state", "given", "runs_on"), [
    (State.DUMPED, 60.0, True), (State.OFFERED, 60.0, True), (State.FINISHING, 60.0, True),
    (State.DUMPED, 0.0, False), (State.DUMPED, LOST, False), (None, 0.0, False), (LOST, 60.0, False),
    (State.PREPARED, 0.0, False),
], ids=str)
def test_the_sources_word_counts_for_more(here: Migration, monkeypatch: pytest.MonkeyPatch,
                                          state: State | Exception | None, given: float | Exception,
                                          runs_on: bool) -> None:
    """It is given only by who has looked that it stands still there: as where a rollback by force was broken off."""

    def asked(_args: object, _of: object, within: object = None) -> tuple[State | None, float]:
        for answer in (state, *([given] if within else [])):
            if isinstance(answer, Exception):
                raise answer
        return (state, given) if within else (state, 0.0)  # type: ignore[return-value]

    monkeypatch.setattr(ask_source, "_asked", asked)
    if runs_on:
        assert resume_destination._complete_restored(Asking(), here) is None
    else:
        with pytest.raises(TwoCopies):
            resume_destination._complete_restored(Asking(), here)
    fence = container_config.fence_of((folder(here) / "config").read_text())
    assert fence == ("" if runs_on else here.id) and here.state is State.RESTORED
