# SPDX-License-Identifier: GPL-2.0-or-later
"""Pairing: the state machine as data, and over a real rendezvous; and what somebody in between can do."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from migrator.base import strict_json
from migrator.base.strict_json import Malformed
from tests.effort import tries
from tests.tunnel.clock import eventually, pass_time, standing
from tests.tunnel.serving import serving
from tunnel.identity.own_identity import Identity, PublicIdentity
from tunnel.identity.peers import Peers
from tunnel.identity.tunnel_config import URL_MAX, Server
from tunnel.pairing import by_code
from tunnel.pairing.codes import Code
from tunnel.pairing.state_machine import LIFE, TRANSITIONS, Pairing, Partner, Side, State, checked_rendezvous
from tunnel.rendezvous.limits import Limits, Rate
from tunnel.signalling.link import Link
from tunnel.tunnel_errors import IdentityChanged, PairingFailed, RendezvousUnavailable

CODE = Code("7", "velvet-harbor")
INVITER, JOINER = Identity.generate(), Identity.generate()
URLS = ("wss://192.0.2.1:7000#sha256:" + "ab" * 32,)

Tamper = Callable[[int, bytes], bytes]


def machines(joiner_code: Code = CODE, joiner: Identity = JOINER) -> tuple[Pairing, Pairing]:
    return (Pairing(Side.INVITER, CODE, INVITER, URLS, 0.0), Pairing(Side.JOINER, joiner_code, joiner, (), 0.0))


def run(one: Pairing, two: Pairing, tamper: Tamper = lambda _, note: note, now: float = 1.0) -> list[bytes]:
    """Let both talk to their end; everything that was said, in order. Raises what a side raises."""
    said: list[bytes] = []
    sides, sent = [one, two], two.start()
    while sent:
        (note,) = sent
        said.append(tamper(len(said), note))
        sent = sides[(len(said) - 1) % 2].receive(said[-1], now)
    return said


# --- The machine ---


def test_both_learn_each_other() -> None:
    one, two = machines()
    said = run(one, two)
    assert one.state is two.state is State.PAIRED
    assert one.partner == Partner(JOINER.public, ())
    assert two.partner == Partner(INVITER.public, URLS)
    assert len(said) == 5


def test_the_table_covers_every_state_that_waits() -> None:
    ends = {State.PAIRED, State.BURNED}
    assert {state for _, state in TRANSITIONS} | ends == set(State)


def test_a_wrong_code_burns_both() -> None:
    one, two = machines(Code("7", "velvet-hammer"))
    with pytest.raises(PairingFailed, match="codes differ"):
        run(one, two)
    assert two.state is State.BURNED
    with pytest.raises(PairingFailed, match="gave up"):
        one.receive(two.farewell, 1.0)
    assert one.state is State.BURNED
    for machine in (one, two):  # and the right code is no use any more
        with pytest.raises(PairingFailed):
            machine.receive(machines()[1].start()[0], 1.0)
        assert machine.partner is None


def test_a_wrong_nameplate_is_a_wrong_code() -> None:
    one, two = machines(Code("8", CODE.words))
    with pytest.raises(PairingFailed, match="codes differ"):
        run(one, two)


def test_a_code_is_good_for_ten_minutes() -> None:
    one, two = machines()
    with pytest.raises(PairingFailed, match="ten minutes"):
        run(one, two, now=LIFE + 1)
    assert one.state is State.BURNED


def test_a_host_does_not_pair_with_itself() -> None:
    with pytest.raises(PairingFailed, match="own identity"):
        run(*machines(joiner=INVITER))


def test_nothing_that_is_said_shows_who_pairs() -> None:
    said = b"".join(run(*machines()))
    for identity in (INVITER.public, JOINER.public):
        for secret in (identity.to_text(), strict_json.encode(identity.ed25519), identity.id.hex(),
                       identity.fingerprint):
            assert secret.encode() not in said
    assert b"velvet" not in said
    assert b"192.0.2.1" not in said


@pytest.mark.parametrize("number", range(5))
def test_no_message_can_be_changed(number: int) -> None:
    """Whatever is flipped in whichever field, somebody notices, and nobody has pinned what was not meant."""
    clean = json.loads(run(*machines())[number])
    for field in [key for key, value in clean.items() if isinstance(value, str)]:
        one, two = machines()

        def tamper(at: int, note: bytes, field: str = field) -> bytes:
            if at != number:
                return note
            message = json.loads(note)
            data = bytearray(strict_json.decode(message[field]))
            data[-1] ^= 1
            message[field] = strict_json.encode(bytes(data))
            return strict_json.dump(message)

        with pytest.raises(PairingFailed):
            run(one, two, tamper)
        assert one.partner in (None, Partner(JOINER.public, ()))
        assert two.partner in (None, Partner(INVITER.public, URLS))


def test_reflected_messages_burn() -> None:
    one, two = machines()
    (pake,) = two.start()
    with pytest.raises(PairingFailed):
        two.receive(pake, 1.0)
    (answer,) = one.receive(pake, 1.0)
    with pytest.raises(PairingFailed):
        one.receive(answer, 1.0)


def test_replayed_messages_of_another_exchange_burn() -> None:
    before = run(*machines())
    for number in range(5):
        with pytest.raises(PairingFailed):
            run(*machines(), lambda at, note, number=number: before[at] if at == number else note)  # type: ignore[misc]


def test_an_identity_has_to_be_proved() -> None:
    """Who knows the code still cannot present keys that are not its own."""
    liar = Identity.generate()
    liar.public = JOINER.public
    with pytest.raises(PairingFailed, match="not its own"):
        run(*machines(joiner=liar))


def test_somebody_between_has_one_guess_at_each_side() -> None:
    """Speaking SPAKE2 with each side under a guess of his own, he fails with both."""
    guess = Code("7", "guess-guess")
    mallory = Identity.generate()
    one, two = machines()
    with pytest.raises(PairingFailed, match="codes differ"):
        run(one, Pairing(Side.JOINER, guess, mallory, (), 0.0))
    with pytest.raises(PairingFailed, match="codes differ"):
        run(Pairing(Side.INVITER, guess, mallory, (), 0.0), two)
    with pytest.raises(PairingFailed):
        run(one, Pairing(Side.JOINER, CODE, mallory, (), 0.0))  # a second guess, even the right one


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4), max_leaves=8,
)
FIELDS = st.fixed_dictionaries({}, optional=dict.fromkeys(("pake", "confirm", "identity", "done", "burned"), JSON))


@settings(max_examples=tries(10, 200), deadline=None)
@given(step=st.integers(0, 4), note=st.binary(max_size=5000) | FIELDS.map(lambda found: json.dumps(found).encode()))
def test_anything_instead_of_a_message_fails_in_one_way(step: int, note: bytes) -> None:
    one, two = machines()
    with pytest.raises(PairingFailed):
        run(one, two, lambda at, real: note if at == step else real)
    assert State.BURNED in (one.state, two.state)


@settings(max_examples=tries(10, 200), deadline=None)
@given(body=st.fixed_dictionaries({}, optional=dict.fromkeys(("identity", "signature", "rendezvous"), JSON)))
def test_anything_inside_the_seal_fails_in_one_way(body: dict[str, Any]) -> None:
    one, two = machines()
    real = strict_json.dump
    with contextlib.suppress(ValueError), pytest.MonkeyPatch.context() as patch:
        patch.setattr(strict_json, "dump", lambda message: real(body if "signature" in message else message))
        with pytest.raises(PairingFailed):
            run(one, two)


# --- Over a rendezvous ---


class Host:
    """One side: its identity and its store."""

    def __init__(self, folder: Path, calls_it: str) -> None:
        self.identity = Identity.load(folder / "identity")
        self.peers = Peers(folder / "peers")
        self.calls_it = calls_it
        self.shown: list[Code] = []

    def check(self, public: PublicIdentity) -> None:
        self.peers.check(self.calls_it, public)

    def pin(self, partner: Partner) -> None:
        self.peers.pin(self.calls_it, partner.public, partner.rendezvous)

    async def invite(self, *servers: Server) -> Partner:
        return await by_code.invite(servers, self.identity, show=lambda code, _: self.shown.append(code),
                                    check=self.check, pin=self.pin)

    async def join(self, code: Code, *servers: Server) -> Partner:
        return await by_code.join(servers, code, self.identity, check=self.check, pin=self.pin)

    @property
    def pinned(self) -> list[str]:
        return [peer.name for peer in self.peers.all()]


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[tuple[Host, Host]]:
    return Host(tmp_path / "a", "hostb"), Host(tmp_path / "b", "hosta")  # type: ignore[return-value]


async def invited(host: Host, *servers: Server) -> tuple[Code, asyncio.Task[Partner]]:
    before = len(host.shown)
    task = asyncio.create_task(host.invite(*servers))
    await eventually(lambda: len(host.shown) > before)
    return host.shown[-1], task


def test_invite_and_join(hosts: tuple[Host, Host]) -> None:
    one, two = hosts

    @standing
    async def test() -> None:
        async with serving() as there:
            code, task = await invited(one, there.server)
            assert (await two.join(code, there.server)).public == one.identity.public
            assert (await task).public == two.identity.public
            assert one.peers.get("hostb").public == two.identity.public
            assert one.peers.get("hostb").servers == two.peers.get("hosta").servers == (there.server,)
            with pytest.raises(PairingFailed, match="nobody waits"):
                await two.join(code, there.server)
            # Once more, with the same identities: nothing changes.
            code, task = await invited(one, there.server)
            await two.join(code, there.server)
            await task
            assert one.pinned == ["hostb"]

    test()


def test_a_wrong_code_fails_once_and_burns(hosts: tuple[Host, Host]) -> None:
    one, two = hosts

    @standing
    async def test() -> None:
        async with serving() as there:
            code, task = await invited(one, there.server)
            with pytest.raises(PairingFailed, match="codes differ"):
                await two.join(Code(code.nameplate, "wrong-words"), there.server)
            with pytest.raises(PairingFailed, match="wrong there"):
                await task
            with pytest.raises(PairingFailed, match="nobody waits"):
                await two.join(code, there.server)
            assert one.pinned == two.pinned == []

    test()


def test_who_comes_and_goes_has_used_the_code_up(hosts: tuple[Host, Host]) -> None:
    one, two = hosts

    @standing
    async def test() -> None:
        async with serving() as there:
            code, task = await invited(one, there.server)
            link = await Link.open(there.server, 5)
            await link.send({"type": "pair", "nameplate": code.nameplate})
            assert (await link.receive(5))["type"] == "met"
            await link.close()
            with pytest.raises(PairingFailed, match="went away"):
                await task
            with pytest.raises(PairingFailed, match="nobody waits"):
                await two.join(code, there.server)

    test()


def test_another_identity_under_the_name_is_refused_on_both_sides(hosts: tuple[Host, Host]) -> None:
    one, two = hosts
    before = Identity.generate().public

    @standing
    async def test() -> None:
        async with serving() as there:
            for strict, other in ((one, two), (two, one)):
                strict.peers.pin(strict.calls_it, before)
                code, task = await invited(one, there.server)
                results = await asyncio.gather(task, two.join(code, there.server), return_exceptions=True)
                mine = results[0 if strict is one else 1]
                theirs = results[1 if strict is one else 0]
                assert isinstance(mine, IdentityChanged)
                assert isinstance(theirs, PairingFailed)
                assert strict.peers.get(strict.calls_it).public == before
                assert other.pinned == []
                strict.peers.remove(strict.calls_it)

    test()


def test_servers_that_are_down_are_skipped(hosts: tuple[Host, Host]) -> None:
    one, two = hosts
    dead = Server.parse("wss://127.0.0.1:1")

    @standing
    async def test() -> None:
        async with serving() as empty, serving() as there:
            code, task = await invited(one, dead, there.server)
            await two.join(code, dead, empty.server, there.server)
            await task
            assert one.peers.get("hostb").servers[0] == there.server
        with pytest.raises(RendezvousUnavailable):
            await two.join(code, dead)
        with pytest.raises(RendezvousUnavailable):
            await one.invite(dead)

    test()


def test_the_limits_of_codes(hosts: tuple[Host, Host]) -> None:
    """One address can neither take all nameplates nor try many, and what waits too long is sent away."""
    one, two = hosts
    limits = Limits(nameplates_per_address=2, pairings=Rate(0.0, 6), pairing_life=1.5)

    @standing
    async def test() -> None:
        async with serving(limits) as there:
            _, first = await invited(one, there.server)
            _, second = await invited(one, there.server)
            with pytest.raises(RendezvousUnavailable, match="too many codes"):
                await one.invite(there.server)
            pass_time(1.5)
            for task in (first, second):
                with pytest.raises(PairingFailed, match="time is up"):
                    await task
            for number in ("998", "999"):
                with pytest.raises(PairingFailed, match="nobody waits"):
                    await two.join(Code(number, "a"), there.server)
            _, third = await invited(one, there.server)
            pass_time(1.5)
            with pytest.raises(PairingFailed, match="time is up"):
                await third
            with pytest.raises(PairingFailed, match="too many pairings"):
                await two.join(Code("999", "a"), there.server)

    test()


def test_a_rendezvous_that_guesses_learns_nothing_and_is_noticed(hosts: tuple[Host, Host]) -> None:
    """It plays the joiner itself, with the nameplate, which it knows, and words, which it does not."""
    one, _ = hosts

    @standing
    async def test() -> None:
        async with serving() as there:
            code, task = await invited(one, there.server)
            mallory = Pairing(Side.JOINER, Code(code.nameplate, "guess-guess"), Identity.generate(), (), 0.0)
            link = await Link.open(there.server, 5)
            await link.send({"type": "pair", "nameplate": code.nameplate})
            assert (await link.receive(5))["type"] == "met"
            await link.send({"type": "note", "data": strict_json.encode(mallory.start()[0])})
            answer = strict_json.decode((await link.receive(5))["data"])
            with pytest.raises(PairingFailed, match="codes differ"):
                mallory.receive(answer, 1.0)
            # It goes on with a made-up proof, as an attacker would.
            forged = strict_json.dump({"confirm": strict_json.encode(bytes(32)), "identity": ""})
            await link.send({"type": "note", "data": strict_json.encode(forged)})
            with pytest.raises(PairingFailed, match="someone in between has guessed"):
                await task
            await link.close()
            assert one.pinned == []

    test()


def test_the_limits_of_what_a_partner_names_as_its_rendezvous() -> None:
    for urls in (["wss://" + "x" * URL_MAX], [7], [None], ["wss://r.example", 7]):
        with pytest.raises(Malformed, match="a rendezvous server is not a URL"):
            checked_rendezvous({"rendezvous": urls})
