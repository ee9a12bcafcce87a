# SPDX-License-Identifier: GPL-2.0-or-later
"""What a stage would do is shown as it would do it, and nothing is recorded for that."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from migrator.base.result import Result
from migrator.copies import bases
from migrator.errors.containers import OutOfOrder
from migrator.record.journal import Journal
from migrator.record.states import Role, State
from stages import create_dump, finish
from stages.steps import end_copy, examine, freeze_and_offer
from stages.steps.options import MoveRequest, NamedContainer, StandstillOptions
from tests.migrator.wire import by_op
from tests.stages.journals import dumping, journal, offered  # noqa: F401 -- a fixture


class There:
    """It has taken the token; the answer was lost."""

    peer_host = "hostb"

    def __init__(self, state: State) -> None:
        self.state = state

    @by_op
    def call_within(self, _: float, op: str, **__: object) -> dict[str, Any]:
        return {"state": self.state, "ticket": "", "images": True} if op == "state" else {}


REQUEST = MoveRequest(NamedContainer("web"), "root@hostb")


def shown(journal: Journal, stage: Any, state: State) -> Result:
    migration = offered(journal)
    before = len(migration.events())
    there: Any = There(state)
    container: Any = None
    try:
        found = (freeze_and_offer.carry_out(REQUEST, StandstillOptions(), migration, container, there, dry_run=True)
                 if stage is create_dump else end_copy.carry_out(migration, there, dry_run=True))
    finally:
        now = journal.by_id(migration.id, Role.SOURCE)
        assert now and now.state is State.OFFERED and len(now.events()) == before
    return found


@pytest.mark.parametrize("state", [State.OWNED, State.RESTORING, State.RESTORED])
def test_a_dump_that_was_taken(journal: Journal, state: State) -> None:
    found = shown(journal, create_dump, state)
    assert found.data["already"] is True
    assert found.data["next"].startswith(f"migrator {'finish' if state is State.RESTORED else 'restore-dump'} web")


def test_a_dump_that_was_killed_is_still_frozen(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is told to thaw it: the stage itself does so first."""
    for module, name in ((bases, "refuse_another"), (bases, "refuse_another_disk"), (examine, "before_stage"),
                         (freeze_and_offer, "_refuse_changed")):
        monkeypatch.setattr(module, name, lambda *_, **__: None)
    would = Result({"dry_run": []}, "")
    monkeypatch.setattr(freeze_and_offer, "way_of", lambda *_: SimpleNamespace(described=lambda: would))
    migration = dumping(journal)
    migration.note("bridges", bridges={})
    container: Any = SimpleNamespace(name="web", lxcpath=migration.lxcpath, state="FROZEN")
    there: Any = There(State.IMPORTED)
    assert freeze_and_offer.carry_out(REQUEST, StandstillOptions(), migration, container, there, dry_run=True) is would


def test_what_runs_there(journal: Journal) -> None:
    assert shown(journal, finish, State.RESTORED).data["dry_run"][-1]["argv"][0] == "tee"


def test_what_does_not_run_there_yet(journal: Journal) -> None:
    with pytest.raises(OutOfOrder, match="it does not run on the destination yet"):
        shown(journal, finish, State.OWNED)
