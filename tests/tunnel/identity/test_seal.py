# SPDX-License-Identifier: GPL-2.0-or-later
"""Sealed offers: what opens, and everything that must not."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from migrator.base import strict_json
from tests.effort import tries
from tunnel.identity.own_identity import Identity, PublicIdentity
from tunnel.identity.seal import LIFE_MAX, SESSIONS_MAX, SIZE_MAX, VERSION, Opener, Role, other_version, seal
from tunnel.tunnel_errors import OfferRejected

ALICE, BOB, MALLORY = (Identity.generate() for _ in range(3))
SESSION = bytes(range(16))
NOW = 1_700_000_000.0
BODY = {"wg": "key", "candidates": [{"address": "192.0.2.1", "port": 7}]}


def offer(frm: Identity = ALICE, to: PublicIdentity = BOB.public, *, session: bytes = SESSION, sequence: int = 1,
          role: Role = "initiator", life: float = 60.0, body: dict[str, Any] = BODY) -> bytes:
    return seal(frm, to, session=session, role=role, sequence=sequence, expires=NOW + life, body=body)


def opener(frm: Identity = ALICE, me: Identity = BOB) -> Opener:
    return Opener(me, frm.public, lambda: NOW)


def rejected(reason: str, data: bytes, to: Opener | None = None, **wanted: Any) -> None:
    with pytest.raises(OfferRejected, match=reason or None):
        (to or opener()).open(data, **wanted)


def test_what_was_sealed_is_opened() -> None:
    found = opener().open(offer(), SESSION, role="initiator")
    assert (found.session, found.role, found.sequence, found.body) == (SESSION, "initiator", 1, BODY)
    assert found.expires == NOW + 60


def test_nothing_of_it_can_be_seen() -> None:
    data = offer()
    for part in (b"192.0.2.1", SESSION, ALICE.public.id, ALICE.public.ed25519, BOB.public.x25519, b"candidates"):
        assert part not in data
    assert offer() != offer()


def test_only_the_recipient_opens_it() -> None:
    rejected("not from this peer to this host", offer(), opener(me=MALLORY))
    # Not even the one who made it.
    rejected("reflected", offer(), opener(frm=BOB, me=ALICE))


def test_somebody_else_cannot_pass_for_the_peer() -> None:
    rejected("not from this peer", offer(frm=MALLORY))
    # With the peer's name on it, as a rendezvous could write it there.
    forger = Identity.generate()
    forger.public = ALICE.public
    rejected("its signature is wrong", offer(frm=forger))


def test_swapped_keys_do_not_help() -> None:
    """The rendezvous tells Alice that its own key was Bob's, opens what she says and seals it for Bob anew."""
    hybrid = PublicIdentity(BOB.public.ed25519, MALLORY.public.x25519)
    rejected("not from this peer", offer(to=hybrid))
    caught = Identity.generate()
    caught.public, caught.decrypt = hybrid, MALLORY.decrypt  # type: ignore[method-assign]
    # She would have to have pinned the wrong key.
    body = Opener(caught, ALICE.public, lambda: NOW).open(offer(to=hybrid)).body
    rejected("not from this peer", offer(frm=MALLORY, body=body))


# --- Whoever holds the recipient's agreement key can read what is sent to it, and still not speak for anybody ---


def opened_by_hand(data: bytes, by: Identity, frm: PublicIdentity, to: PublicIdentity) -> bytes:
    """What is inside the seal, signature first, for who holds the private key that it was sealed to."""
    return by.decrypt(data[12:], b"migrator seal 2\0" + frm.id + to.id)


def sealed_by_hand(inner: bytes, frm: PublicIdentity, to: PublicIdentity) -> bytes:
    """An offer as docs/tunnel.md describes it; its making takes no private key at all."""
    box = to.encrypt(inner, b"migrator seal 2\0" + frm.id + to.id)
    direction = hashlib.blake2b(box[:32] + frm.id + to.id, digest_size=8, person=b"migrator-dir").digest()
    return b"MGS2" + direction + box


def thief_of_bobs_agreement_key() -> Identity:
    thief = Identity.generate()
    thief.decrypt = BOB.decrypt  # type: ignore[method-assign]
    return thief


def test_the_thief_can_read_and_the_format_is_as_described() -> None:
    inner = opened_by_hand(offer(), thief_of_bobs_agreement_key(), ALICE.public, BOB.public)
    assert json.loads(inner[64 + 33 :]) == BODY
    assert opener().open(sealed_by_hand(inner, ALICE.public, BOB.public)).body == BODY


@pytest.mark.parametrize("what", ["sequence", "body", "session", "role", "expires", "signature"])
def test_the_thief_cannot_change_what_alice_has_said(what: str) -> None:
    inner = opened_by_hand(offer(), thief_of_bobs_agreement_key(), ALICE.public, BOB.public)
    changed = bytearray(inner)
    changed[{"signature": 0, "session": 64, "role": 80, "sequence": 88, "expires": 96, "body": -3}[what]] ^= 1
    rejected("its signature is wrong", sealed_by_hand(bytes(changed), ALICE.public, BOB.public))


def test_the_thief_cannot_speak_in_alices_name() -> None:
    thief = thief_of_bobs_agreement_key()
    header = opened_by_hand(offer(sequence=2), thief, ALICE.public, BOB.public)[64:]
    signed = thief.sign(b"migrator seal 2\0" + ALICE.public.id + BOB.public.id + header)
    for signature in (signed, bytes(64), offer()[:64]):
        rejected("its signature is wrong", sealed_by_hand(signature + header, ALICE.public, BOB.public))


def test_what_was_signed_for_another_is_worth_nothing() -> None:
    """Mallory, a peer of Alice's too, passes on to Bob what Alice has sealed and signed for her."""
    inner = opened_by_hand(offer(to=MALLORY.public), MALLORY, ALICE.public, MALLORY.public)
    rejected("its signature is wrong", sealed_by_hand(inner, ALICE.public, BOB.public))


def test_other_versions_are_told_apart() -> None:
    data = offer()
    for version, said in ((b"MGS1", "it is of version 1, this host reads 2"), (b"MGS3", "it is of version 3")):
        for message in (version, version + data[4:], version + bytes(100)):
            rejected(said, message)
            assert other_version(message)
    for message in (VERSION, data, b"", b"MGS", b"MGSx" + data[4:], b"MGR1" + data[4:]):
        assert other_version(message) is None
    rejected("it is not an offer", VERSION)


# --- Changed, replayed, reflected ---


def test_every_changed_byte_is_noticed() -> None:
    data = offer()
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 0x01
        rejected("", bytes(changed))
    for cut in (0, 1, 43, 44, len(data) - 1):
        rejected("", data[:cut])
    rejected("changed on the way", data + b"\0")


def test_replays_and_older_ones_are_refused() -> None:
    one = opener()
    first, second, third = (offer(sequence=n) for n in (1, 2, 3))
    one.open(first)
    rejected("replay", first, one)
    one.open(third)
    rejected("older", second, one)
    rejected("older", offer(sequence=3), one)
    one.open(offer(sequence=4))
    # Each session and each role counts for itself.
    one.open(offer(session=bytes(16), sequence=1))
    one.open(offer(role="responder", sequence=1))


def test_reflected_offers_are_told_apart() -> None:
    ours = seal(BOB, ALICE.public, session=SESSION, role="responder", sequence=1, expires=NOW + 60, body={})
    rejected("one of this host's own, reflected", ours)
    rejected("as this host is one", offer(role="initiator"), role="responder")


def test_other_sessions() -> None:
    rejected("another session", offer(session=bytes(16)), session=SESSION)


@pytest.mark.parametrize("life", [-1.0, -1e9, LIFE_MAX + 60, 1e300, float("inf"), float("nan")])
def test_times_that_are_refused(life: float) -> None:
    rejected("expired, or the hosts' clocks differ", offer(life=life))


def test_a_refused_offer_leaves_no_trace() -> None:
    """Else somebody could have a good one refused by sending a bad one first."""
    one = opener()
    rejected("another session", offer(), one, session=bytes(16))
    rejected("clocks", offer(life=-5), one)
    one.open(offer())


def test_memory_is_bounded_and_frees_itself() -> None:
    now = NOW
    one = Opener(BOB, ALICE.public, lambda: now)
    for number in range(SESSIONS_MAX):
        one.open(offer(session=number.to_bytes(16)))
    rejected("too many sessions", offer(session=b"\xff" * 16), one)
    now = NOW + LIFE_MAX + 1
    one.open(offer(session=b"\xff" * 16, life=LIFE_MAX + 60))
    assert len(one._seen) == 1


def test_size() -> None:
    rejected("too large", bytes(SIZE_MAX + 1))
    with pytest.raises(ValueError, match="too large"):
        offer(body={"x": "y" * SIZE_MAX})
    with pytest.raises(ValueError, match="malformed"):
        offer(session=b"short")


@pytest.mark.parametrize("body", [b"[]", b"1", b"", b"{", b'{"a":1,"a":2}', b'{"a":NaN}', b"[" * 9000, b"\xff",
                                  b'{"a":' + b"9" * 5000 + b"}"])
def test_a_body_that_is_none(monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    """From a peer that is paired, and broken."""
    with monkeypatch.context() as patch:
        patch.setattr(strict_json, "dump", lambda _: body)
        data = offer()
    rejected("", data)


@settings(max_examples=tries(60, 1000))
@given(st.binary(max_size=400) | st.binary(max_size=200).map(lambda rest: offer()[:44] + rest))
def test_any_bytes_are_rejected_in_one_way(data: bytes) -> None:
    rejected("", data)


def test_it_says_who_it_comes_from() -> None:
    rejected("it comes from an initiator, as this host is one", offer(role="initiator"), role="responder")
    rejected("it comes from a responder, as this host is one", offer(role="responder"), role="initiator")


def test_the_limits_themselves() -> None:
    """Of its life, and of the memory of what came: an offer of that very moment is not good any more."""
    rejected("clocks", offer(life=0.0))
    opener().open(offer(life=LIFE_MAX))
    rejected("clocks", offer(life=LIFE_MAX + 0.5))
    now = NOW
    one = Opener(BOB, ALICE.public, lambda: now)
    one.open(offer(sequence=7))
    now = NOW + LIFE_MAX - 1
    rejected("older", offer(sequence=6, life=2 * LIFE_MAX - 1), one)  # remembered for as long as one could be good
    now = NOW + LIFE_MAX
    one.open(offer(sequence=6, life=2 * LIFE_MAX))


def test_each_role_of_each_session_has_its_own_count() -> None:
    one = opener()
    one.open(offer(sequence=5))
    for session, role in ((SESSION, "responder"), (bytes(16), "initiator")):
        one.open(offer(session=session, role=role, sequence=1))  # type: ignore[arg-type]
        rejected("replay", offer(session=session, role=role, sequence=1), one)  # type: ignore[arg-type]
        one.open(offer(session=session, role=role, sequence=2))  # type: ignore[arg-type]
    rejected("older", offer(sequence=4), one)


def test_a_full_memory_still_takes_the_sessions_that_it_knows() -> None:
    one = opener()
    for number in range(SESSIONS_MAX):
        one.open(offer(session=number.to_bytes(16)))
    one.open(offer(session=(0).to_bytes(16), sequence=2))
    rejected("too many sessions", offer(session=b"\xff" * 16), one)


@pytest.mark.parametrize("number", [2, 3, 255])
def test_a_role_that_is_none(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """From a peer that is paired, and broken, or newer."""
    with monkeypatch.context() as patch:
        patch.setattr("tunnel.identity.seal._ROLES", ("?",) * number + ("observer",))
        data = offer(role="observer")  # type: ignore[arg-type]
    rejected("its role is unknown", data)


def test_the_largest_is_opened() -> None:
    spare = SIZE_MAX - len(offer(body={"x": ""}))
    largest = offer(body={"x": "y" * spare})
    assert len(largest) == SIZE_MAX and opener().open(largest).body == {"x": "y" * spare}
    rejected("too large", largest + b"\0")


@pytest.mark.parametrize(("life", "left"), [(-1.0, "-1"), (LIFE_MAX + 60, rf"\+{LIFE_MAX + 60:.0f}")])
def test_by_how_much_the_clocks_differ_is_said(life: float, left: str) -> None:
    rejected(rf"\({left} s left\)", offer(life=life))


@pytest.mark.parametrize(("length", "reason"), [
    (0, "it is not an offer"), (64 + 33 - 1, "it is not an offer"), (64 + 33, "its signature is wrong"),
])
def test_the_shortest_that_is_looked_into(length: int, reason: str) -> None:
    """A signature and a header, and no body."""
    rejected(reason, sealed_by_hand(bytes(length), ALICE.public, BOB.public))
