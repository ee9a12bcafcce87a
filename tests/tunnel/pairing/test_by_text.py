# SPDX-License-Identifier: GPL-2.0-or-later
"""Pairing by copy and paste, and over a channel that is safe already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from migrator.base import strict_json
from migrator.base.strict_json import Malformed
from tests.effort import tries
from tunnel.identity.own_identity import Identity
from tunnel.identity.peers import Peers
from tunnel.pairing import by_channel, by_text
from tunnel.pairing.by_text import Invitation
from tunnel.pairing.state_machine import Partner
from tunnel.tunnel_errors import IdentityChanged, PairingFailed

ALICE, BOB, EVE = (Identity.generate() for _ in range(3))
URLS = ("wss://192.0.2.1:7000#sha256:" + "ab" * 32,)


def test_invitation_and_answer() -> None:
    invitation = Invitation(ALICE, URLS)
    partner, answer = by_text.answer(invitation.text, BOB, ())
    assert partner == Partner(ALICE.public, URLS)
    assert invitation.accept(answer) == Partner(BOB.public, ())
    assert len(invitation.text) < 600
    with pytest.raises(PairingFailed, match="already been used"):
        invitation.accept(answer)


def test_blanks_and_line_breaks_do_not_matter() -> None:
    invitation = Invitation(ALICE, URLS)
    broken = "\n  ".join(invitation.text[at : at + 60] for at in range(0, len(invitation.text), 60))
    _, answer = by_text.answer(f"\n{broken}\r\n", BOB, URLS)
    assert invitation.accept(f" {answer[:50]}\n{answer[50:]} ").public == BOB.public


def test_it_is_known_when_a_text_is_complete() -> None:
    text = Invitation(ALICE, ()).text
    assert by_text.complete(text)
    assert not any(by_text.complete(text[:end]) for end in range(len(text)))
    assert by_text.complete("x" * 5000)


def test_an_invitation_is_good_for_an_hour() -> None:
    for late, good in ((-1.0, True), (1.0, False)):
        now = [1000.0]
        invitation = Invitation(ALICE, (), lambda now=now: now[0])  # type: ignore[misc]
        _, answer = by_text.answer(invitation.text, BOB, ())
        now[0] += by_text.LIFE + late
        if good:
            invitation.accept(answer)
        else:
            with pytest.raises(PairingFailed, match="an hour has passed"):
                invitation.accept(answer)


def test_an_answer_to_another_invitation_is_refused() -> None:
    one, two = Invitation(ALICE, ()), Invitation(ALICE, ())
    _, answer = by_text.answer(one.text, BOB, ())
    with pytest.raises(PairingFailed):
        two.accept(answer)


def test_who_has_not_seen_the_invitation_cannot_answer() -> None:
    """Eve knows who invites, but not the secret."""
    invitation = Invitation(ALICE, ())
    _, answer = by_text.answer(Invitation(ALICE, ()).text, EVE, ())
    with pytest.raises(PairingFailed):
        invitation.accept(answer)


def test_a_changed_answer_is_refused() -> None:
    _, answer = by_text.answer(Invitation(ALICE, ()).text, BOB, ())
    for at in range(4, len(answer) - 1, 7):
        invitation = Invitation(ALICE, ())
        _, answer = by_text.answer(invitation.text, BOB, ())
        with pytest.raises(PairingFailed):
            invitation.accept(answer[:at] + ("A" if answer[at] != "A" else "B") + answer[at + 1 :])


def test_in_between_the_fingerprints_show_it() -> None:
    """Who can change everything that is pasted pairs with both, but neither sees the other's fingerprint."""
    invitation = Invitation(ALICE, ())
    _, forged_answer = by_text.answer(invitation.text, EVE, ())
    bob_sees, _ = by_text.answer(Invitation(EVE, ()).text, BOB, ())
    alice_sees = invitation.accept(forged_answer)
    assert bob_sees.public.fingerprint != ALICE.public.fingerprint
    assert alice_sees.public.fingerprint != BOB.public.fingerprint


def test_one_does_not_pair_with_oneself() -> None:
    with pytest.raises(PairingFailed, match="own identity"):
        by_text.answer(Invitation(ALICE, ()).text, ALICE, ())


@settings(max_examples=tries(40, 500), deadline=None)
@given(st.text(max_size=300) | st.text(max_size=200).map(lambda rest: f"MI1.{rest}.")
       | st.binary(max_size=200).map(lambda rest: f"MI1.{strict_json.encode(rest)}."))
def test_any_text_fails_in_one_way(text: str) -> None:
    with pytest.raises(PairingFailed):
        by_text.answer(text, BOB, ())
    with pytest.raises(PairingFailed):
        Invitation(ALICE, ()).accept(text.replace("MI1", "MA1"))


# --- Over a channel that is safe already ---


class There:
    """The other host: what it is asked goes through JSON, as on a wire."""

    def __init__(self, folder: Path, identity: Identity = BOB) -> None:
        self.identity = identity
        self.peers = Peers(folder / "there")
        self.asked: list[str] = []
        self.tamper: Any = lambda op, answer: answer

    def __call__(self, op: str, fields: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(op)
        fields = strict_json.load(strict_json.dump(fields), 10_000)
        answer = (by_channel.identify(self.identity, URLS, fields) if op == "identify"
                  else by_channel.pin(self.identity, self.peers, fields))
        changed: dict[str, Any] = self.tamper(op, answer)
        return changed


@pytest.fixture
def here(tmp_path: Path) -> Peers:
    return Peers(tmp_path / "here")


def pair(there: There, here: Peers) -> Any:
    return by_channel.pair(there, ALICE, here, name="hostb", own_name="hosta", rendezvous=())


def test_both_pin_each_other(here: Peers, tmp_path: Path) -> None:
    there = There(tmp_path)
    assert pair(there, here).rendezvous == URLS
    assert here.get("hostb").public == BOB.public
    assert there.peers.get("hosta").public == ALICE.public


def test_nothing_is_pinned_there_if_it_cannot_be_pinned_here(here: Peers, tmp_path: Path) -> None:
    there = There(tmp_path)
    here.pin("hostb", EVE.public)
    with pytest.raises(IdentityChanged):
        pair(there, here)
    assert there.asked == ["identify"]


def test_nothing_is_pinned_here_if_it_was_refused_there(here: Peers, tmp_path: Path) -> None:
    there = There(tmp_path)
    there.peers.pin("hosta", EVE.public)
    with pytest.raises(IdentityChanged):
        pair(there, here)
    assert here.all() == []


def test_keys_have_to_be_owned(here: Peers, tmp_path: Path) -> None:
    liar = Identity.generate()
    liar.public = BOB.public
    with pytest.raises(PairingFailed, match="not its own"):
        pair(There(tmp_path, liar), here)
    with pytest.raises(PairingFailed, match="this host itself"):
        pair(There(tmp_path, ALICE), here)


@settings(max_examples=tries(40, 500), deadline=None)
@given(st.dictionaries(st.sampled_from(["identity", "signature", "rendezvous", "name", "nonce"]),
                       st.none() | st.integers() | st.text(max_size=100) | st.lists(st.text(max_size=9), max_size=3)))
def test_any_fields_are_malformed(fields: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        by_channel.identify(ALICE, (), {**fields, "nonce": "AAAA"})
    with pytest.raises(Malformed):
        by_channel.pin(ALICE, Peers(Path("/nonexistent/peers")), fields)
