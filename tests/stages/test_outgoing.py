# SPDX-License-Identifier: GPL-2.0-or-later
"""A migration that goes out from this host: who connects to here and knows its id can do nothing to it."""

# ruff: noqa: F811 -- fixtures

from __future__ import annotations

import pytest

from migrator.errors.connection import NotAllowed
from migrator.record import grant, image_folders
from migrator.record.grant import Grant
from migrator.record.states import Role, State
from tests.stages.callers import HOSTA, HOSTC, ID, OF_A_MIGRATION, Here, dumped, goes_out, here, peer  # noqa: F401 -- a fixture
from tunnel.identity.own_identity import Identity
from tunnel.identity.peers import Peer

TICKET = "0123456789abcdef" * 2


@pytest.mark.parametrize("op", OF_A_MIGRATION)
@pytest.mark.parametrize("granted", [peer("hosta", "receive"), grant.of_only("receive"), grant.ROOT],
                         ids=["its destination", "a key", "root"])
def test_its_id_is_taken(here: Here, op: str, granted: Grant) -> None:
    """Images, ports and the firewall's table hang on the id alone."""
    goes_out(here)
    images = image_folders.RUNTIME / ID
    images.mkdir(parents=True)
    (images / "pages-1.img").write_text("what is being dumped")
    with pytest.raises(NotAllowed, match=f"migration {ID} was begun by someone else"):
        here.caller(granted)(op)
    assert (images / "pages-1.img").read_text() == "what is being dumped"
    assert here.journal.by_id(ID, Role.DESTINATION) is None
    assert list(here.pool.iterdir()) == []


def test_a_new_one_gets_no_id_that_is_taken(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    here.begun(peer("hosta", "receive"))
    drawn = iter((ID, ID, "00000004"))
    monkeypatch.setattr("migrator.base.names.new_migration_id", lambda: next(drawn))
    assert here.journal.unused_id() == "00000004"


def test_a_peer_is_known_by_its_fingerprint(here: Here) -> None:
    """Removed, and another host paired under its name: that is not where the migration has gone."""
    migration = dumped(goes_out(here, destination_fingerprint=HOSTA.fingerprint))
    another = grant.of_peer(Peer("hosta", Identity.generate().public, (), 0.0, ("receive",)))
    for fields in ({}, {"within": 5.0}, {"never": True}):
        with pytest.raises(NotAllowed, match="does not go to it"):
            here.caller(another)("source-state", **fields)
    migration.refresh()
    assert migration.handover.leave is None
    renamed = grant.of_peer(Peer("attic", HOSTA, (), 0.0, ()))
    assert here.caller(renamed)("source-state", within=5.0) == {"state": State.DUMPED, "owner": "destination",
                                                                "leave": 5.0, "ticket": ""}


def test_what_an_older_version_has_begun_knows_the_name_alone(here: Here) -> None:
    dumped(goes_out(here))
    assert here.caller(peer("hosta"))("source-state", within=5.0)["leave"] == 5.0
    with pytest.raises(NotAllowed, match="does not go to it"):
        here.caller(grant.of_peer(Peer("attic", HOSTC, (), 0.0, ())))("source-state")


@pytest.mark.parametrize(("only", "given"), [("ask", False), ("ask,as=hostc", False), ("ask,as=hosta", True)])
def test_the_word_is_given_to_the_destination_alone(here: Here, only: str, given: bool) -> None:
    """Whoever had it would keep a forced rollback waiting for as long."""
    migration = dumped(goes_out(here, "root@hosta", ticket=TICKET))
    ask = here.caller(grant.of_only(only))
    if given:
        assert ask("source-state", within=5.0)["leave"] == 5.0
    else:
        with pytest.raises(NotAllowed, match="as=hosta"):
            ask("source-state", within=5.0)
        assert ask("source-state")["state"] == State.DUMPED
    assert (ask("source-state")["ticket"] == TICKET) is given, "who has it passes for this host there"
    migration.refresh()
    assert (migration.handover.leave is not None) is given
