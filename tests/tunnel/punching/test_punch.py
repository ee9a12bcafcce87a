# SPDX-License-Identifier: GPL-2.0-or-later
"""The punching state machine: every pair of NATs ends as it should, and nothing that an attacker sends changes it."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.effort import tries
from tests.tunnel.net_model import KEY, KINDS, Kind, Net
from tunnel.candidates.candidate import CANDIDATES_MAX, Candidate
from tunnel.candidates.outlook import Policy
from tunnel.punching import birthday, probes, punch
from tunnel.punching.actions import Action, Config, Done, Failed, Send
from tunnel.punching.probes import Probe, Replays, Type
from tunnel.punching.punch import Punch, State

PAIRS = list(itertools.product(KINDS, KINDS))
CONES: tuple[Kind, ...] = ("none", "full-cone", "address-restricted", "port-restricted")
STRANGER = ("192.0.2.66", 6666)


def expected(a: Kind, b: Kind) -> str:
    if "blocked" in (a, b) or (a == b == "symmetric"):
        return "relay"
    return "direct"


def ends(net: Net) -> tuple[Done, Done]:
    a, b = net.sides["a"].ended, net.sides["b"].ended
    assert isinstance(a, Done), a
    assert isinstance(b, Done), b
    return a, b


@pytest.mark.parametrize("input_drop", [True, False], ids=["drop", "no-input-drop"])
@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_every_pair(a: Kind, b: Kind, input_drop: bool) -> None:
    net = Net(a, b, input_drop=input_drop).run()
    done_a, done_b = ends(net)
    assert done_a.kind == done_b.kind == expected(a, b)
    if done_a.kind == "direct":
        # Each sends to where the other is.
        for mine, theirs in ((done_a, net.sides["b"]), (done_b, net.sides["a"])):
            assert mine.endpoint[0] == theirs.router.address
    if a in CONES and b in CONES:
        assert net.sides["a"].ended_at - 100.03 < 0.5


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("a", "b"), [("symmetric", "port-restricted"), ("port-restricted", "symmetric")])
def test_symmetric_against_port_restricted(a: Kind, b: Kind, seed: int) -> None:
    net = Net(a, b, seed=seed).run()
    assert {each.kind for each in ends(net)} == {"direct"}
    assert "guessed port" in ends(net)[0].reason


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_without_a_relay(a: Kind, b: Kind) -> None:
    net = Net(a, b, relay=False).run()
    if expected(a, b) == "direct":
        assert {each.kind for each in ends(net)} == {"direct"}
    else:
        for side in net.sides.values():
            assert isinstance(side.ended, Failed)
            assert "there is no relay" in side.ended.reason


@pytest.mark.parametrize(
    ("policy", "kind"), [("direct-only", "direct"), ("relay-only", "relay"), ("prefer-direct", "direct")]
)
def test_policy(policy: Policy, kind: str) -> None:
    net = Net("port-restricted", "port-restricted").run(policy=policy)
    assert {each.kind for each in ends(net)} == {kind}
    if policy == "relay-only":
        assert all(send.via < 0 for side in net.sides.values() for send in side.sent)
    if policy == "direct-only":
        assert all(send.via >= 0 for side in net.sides.values() for send in side.sent)


def test_direct_only_where_there_is_no_way() -> None:
    net = Net("symmetric", "symmetric").run(policy="direct-only", limit=3.0)
    assert {type(side.ended) for side in net.sides.values()} == {Failed}


def test_responder_sends_nothing_far_before_the_initiator_has_begun() -> None:
    """What reached the initiator's router first would move the initiator's mapping."""
    net = Net("port-restricted", "port-restricted", input_drop=False)
    b = net.sides["b"]
    b.begin(Config("responder", KEY, net.sides["a"].candidates()))
    net.pump(limit=punch.START_DELAY * 0.9)
    assert b.sent
    assert all(send.ttl is not None for send in b.sent)
    assert not net.tapped
    net.pump(limit=0.3)  # without a word of the initiator it begins all the same
    assert net.tapped


def test_go_is_not_needed() -> None:
    net = Net("full-cone", "symmetric").run(go=False)
    assert {each.kind for each in ends(net)} == {"direct"}


@settings(max_examples=tries(40, 1000), deadline=None)
@given(
    st.sampled_from([(a, b) for a, b in PAIRS if "symmetric" not in (a, b) and "blocked" not in (a, b)]),
    st.floats(0, 0.3), st.floats(0, 0.5), st.floats(0, 0.5), st.floats(0.0005, 0.15), st.integers(0, 2**32),
    st.booleans(),
)
def test_bad_network(pair: tuple[Kind, Kind], loss: float, double: float, late: float, latency: float, seed: int,
                     input_drop: bool) -> None:
    """Lost, doubled and late packets cost time; both sides still agree."""
    net = Net(*pair, seed=seed, loss=loss, double=double, late=late, latency=latency, input_drop=input_drop).run()
    done_a, done_b = ends(net)
    assert done_a.kind == done_b.kind


@settings(max_examples=tries(20, 400), deadline=None)
@given(st.sampled_from(PAIRS), st.integers(0, 2**32), st.data())
def test_attacker(pair: tuple[Kind, Kind], seed: int, data: st.DataObject) -> None:
    """Whatever is forged, changed, reflected or replayed: nobody sends the attacker anything, the end is the same."""
    net = Net(*pair, seed=seed, late=0.2)
    rng = random.Random(data.draw(st.integers(0, 2**32)))

    def attack() -> None:
        for side in net.sides.values():
            replayed = side.heard[-20:]
            for _, _, captured in net.tapped[-5:]:
                changed = bytearray(captured)
                changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
                side.receive(0, STRANGER, bytes(changed))
            side.receive(0, STRANGER, rng.randbytes(rng.choice([0, 1, probes.SIZE, 1400])))
            for each in [*replayed, *(send.data for send in side.sent[-5:])]:  # what it got already, and its own
                side.receive(0, STRANGER, each)
        if any(side.ended is None for side in net.sides.values()):
            net.at(net.now + 0.05, attack)

    net.at(net.now + 0.01, attack)
    net.run()
    done_a, done_b = ends(net)
    assert done_a.kind == done_b.kind == expected(*pair)
    assert not [send for side in net.sides.values() for send in side.sent if send.to == STRANGER]


# --- Not a scanner ---


def all_sends(config: Config, *, opened: int = birthday.WIDE_SOCKETS) -> list[Send]:
    """Everything that one side sends to a peer that never answers."""
    now, sent = 0.0, []
    machine = Punch(config, now)
    actions: list[Action] = machine.tick(now)
    while machine.state is not State.FAILED:
        for action in actions:
            if isinstance(action, Send):
                sent.append(action)
        now = max(machine.wake, now + 0.001)
        actions = machine.tick(now) + (machine.opened(opened, now) if machine._search.asked else [])
    return sent


@pytest.mark.parametrize("role", ["initiator", "responder"])
@pytest.mark.parametrize("here", ["open", "cone", "symmetric", "blocked"])
@pytest.mark.parametrize("there", ["open", "cone", "symmetric", "blocked"])
def test_a_list_of_strangers(role: probes.Role, here: str, there: str) -> None:
    strangers = [Candidate("reflexive", f"198.51.100.{n}", 2000 + n) for n in range(1, CANDIDATES_MAX - 3)]
    inner = [Candidate("host", f"192.168.1.{n}", 2000 + n) for n in range(1, 5)]
    remote = (strangers + inner)[:CANDIDATES_MAX]
    config = Config(role, KEY, remote, here, there)  # type: ignore[arg-type]
    sent = all_sends(config)
    listed = {each.endpoint for each in remote}
    per_target = {each: sum(send.to == each for send in sent) for each in listed}
    openers = 6 if role == "responder" else 0
    guessed = [send for send in sent if send.to not in listed]
    assert len({send.to[0] for send in guessed}) <= 1, "ports are guessed at one address only"
    assert len(guessed) <= birthday.NARROW_PROBES
    for each in strangers[1:]:
        assert per_target[each.endpoint] <= punch.TARGET_PINGS + openers
    for each in inner:
        assert per_target[each.endpoint] <= punch.HOST_PINGS
    assert len(sent) <= 16 * (punch.TARGET_PINGS + 6) + birthday.NARROW_PROBES + 2 * birthday.WIDE_SOCKETS


def test_no_guessing_in_private_networks() -> None:
    remote = [Candidate("reflexive", "192.168.1.1", 2000), Candidate("host", "10.0.0.7", 2000)]
    sent = all_sends(Config("initiator", KEY, remote, "cone", "symmetric"))
    assert {send.to for send in sent} == {each.endpoint for each in remote}


@pytest.mark.parametrize(("here", "there"), [("cone", "symmetric"), ("symmetric", "cone")])
def test_no_guessing_under_a_live_interface(here: str, there: str) -> None:
    """There the symmetric side has one socket, and what is guessed in vain goes to somebody's router."""
    remote = [Candidate("reflexive", "198.51.100.1", 2000)]
    for wide in (True, False):
        config = Config("initiator", KEY, remote, here, there, wide=wide)  # type: ignore[arg-type]
        assert (len(all_sends(config)) > punch.TARGET_PINGS) is wide


def test_learned_candidates_are_capped() -> None:
    """The peer itself may be the one who sends from everywhere."""
    machine = Punch(Config("initiator", KEY, []), 0.0)
    targets = set()
    for n in range(200):
        ping = probes.make(KEY, Probe(Type.PING, "responder", n + 1, 0))
        for action in machine.received(0, ("192.0.2.9", 2000 + n), ping, 0.0):
            if isinstance(action, Send) and probes.parse(KEY, action.data)[0] is Type.PING:  # type: ignore[index]
                targets.add(action.to)
    assert len(targets) == punch.LEARNED_MAX


@pytest.mark.parametrize(("address", "most"), [("192.0.2.9", punch.TARGET_PINGS), ("192.168.1.9", punch.HOST_PINGS)])
def test_where_the_peer_is_heard_from_counts_as_what_it_offers(address: str, most: int) -> None:
    """Who may be heard from is the NATs' affair, below port 1024 too."""
    now, machine, sent = 0.0, Punch(Config("initiator", KEY, []), 0.0), 0
    ping = probes.make(KEY, Probe(Type.PING, "responder", 1, 0))
    actions = machine.received(0, (address, 53), ping, now)
    while machine.state is not State.FAILED:
        sent += sum(probes.parse(KEY, each.data).type is Type.PING  # type: ignore[union-attr]
                    for each in actions if isinstance(each, Send))
        now = max(machine.wake, now + 0.001)
        actions = machine.tick(now)
    assert 1 < sent <= most + 1, "one at once, to check the way back"


# --- Probes ---


@given(st.binary(max_size=100))
def test_garbage_is_no_probe(data: bytes) -> None:
    assert probes.parse(KEY, data) is None


@given(st.sampled_from(Type), st.sampled_from(["initiator", "responder"]), st.integers(0, 2**64 - 1),
       st.integers(0, 2**64 - 1))
def test_probe_there_and_back(kind: Type, role: probes.Role, sequence: int, echo: int) -> None:
    probe = Probe(kind, role, sequence, echo)
    data = probes.make(KEY, probe)
    assert len(data) == probes.SIZE
    assert probes.parse(KEY, data) == probe
    assert probes.parse(b"x" * 32, data) is None
    assert data[0] not in (1, 2, 3, 4), "WireGuard would take it for its own"


@given(st.integers(0, probes.SIZE * 8 - 1))
def test_every_bit_is_covered(bit: int) -> None:
    data = bytearray(probes.make(KEY, Probe(Type.PING, "initiator", 7, 0)))
    data[bit // 8] ^= 1 << bit % 8
    assert probes.parse(KEY, bytes(data)) is None


@given(st.lists(st.integers(1, 3 * probes.WINDOW), max_size=200))
def test_replays(sequences: list[int]) -> None:
    """Nothing counts twice; what is new and not too old counts once."""
    window, seen, highest = Replays(), set(), 0
    for each in sequences:
        fresh = window.fresh(each)
        assert not (fresh and each in seen)
        if each not in seen and each > highest - probes.WINDOW:
            assert fresh
        if fresh:
            seen.add(each)
            highest = max(highest, each)
