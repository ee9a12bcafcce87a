# SPDX-License-Identifier: GPL-2.0-or-later
"""Garbage for every parser of what comes from the wire: each says no, none fails in another way."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from migrator.base.strict_json import Malformed, encode
from tests.effort import tries
from tests.tunnel.json_values import json_values
from tunnel import gso
from tunnel.candidates import hops, reflection
from tunnel.punching import raw
from tunnel.relay import relay_messages
from tunnel.relay.relay_client import Joining, RelayToken
from tunnel.relay.relay_messages import Answer, Claim, Refusal, Type
from tunnel.session import offers
from tunnel.session.session_keys import Ours, Public

KEY = b"k" * 32
CLAIM = Claim(b"s" * 16, b"a" * 16, b"b" * 16, 2_000_000_000)
ENDPOINT = st.tuples(st.ip_addresses().map(str), st.integers(0, 65535))

# --- Reflectors ---


@given(st.binary(max_size=60))
def test_reflection_garbage(data: bytes) -> None:
    nonce = reflection.asked(data)
    assert nonce is None or data == reflection.request(nonce)
    reflection.answered(data)


@given(st.binary(min_size=12, max_size=12), ENDPOINT)
def test_reflection(nonce: bytes, endpoint: tuple[str, int]) -> None:
    asked, answered = reflection.request(nonce), reflection.answer(nonce, *endpoint)
    assert reflection.asked(asked) == nonce
    assert len(answered) < len(asked), "it would amplify"
    found = reflection.answered(answered)
    assert found is not None
    if "::ffff:" not in endpoint[0]:
        assert found == (nonce, *endpoint)


# --- Relay ---


@given(st.binary(max_size=150))
def test_relay_garbage(data: bytes) -> None:
    relay_messages.parse_join(data)
    relay_messages.parse_join(relay_messages.MAGIC + data)
    assert relay_messages.parse_answer(data, KEY) is None
    assert relay_messages.parse_answer(relay_messages.MAGIC + data, KEY) is None


@given(st.binary(min_size=16, max_size=16), st.integers(0, 2**64 - 1))
def test_relay_messages(cookie: bytes, number: int) -> None:
    data = relay_messages.join(CLAIM.pack(), KEY, number, cookie)
    assert relay_messages.parse_join(data) == (CLAIM, CLAIM.pack(), cookie, number, False)
    leave = relay_messages.join(CLAIM.pack(), KEY, number, cookie, leave=True)
    assert relay_messages.parse_join(leave) == (CLAIM, CLAIM.pack(), cookie, number, True)
    assert relay_messages.proved(data, KEY)
    assert not relay_messages.proved(data, b"x" * 32)
    for answer in (
        (relay_messages.challenge(KEY, number, cookie), Answer(Type.CHALLENGE, number, cookie=cookie)),
        (relay_messages.joined(KEY, number, present=True), Answer(Type.JOINED, number, present=True)),
        (relay_messages.refused(KEY, number, Refusal.FULL), Answer(Type.REFUSED, number, refusal=Refusal.FULL)),
    ):
        assert relay_messages.parse_answer(answer[0], KEY) == answer[1]
        assert relay_messages.parse_answer(answer[0], b"x" * 32) is None
        assert len(answer[0]) <= relay_messages.JOIN_SIZE, "it would amplify"


@given(st.lists(st.binary(max_size=2000), max_size=20), st.integers(0, 3000))
def test_frames(datagrams: list[bytes], cut: int) -> None:
    """What TCP brings in pieces is put together again, whatever the pieces."""
    stream = b"".join(relay_messages.framed(each) for each in datagrams)
    first, used = relay_messages.frames(stream[:cut])
    rest, used_too = relay_messages.frames(stream[used:])
    assert [bytes(each) for each in [*first, *rest]] == datagrams
    assert used + used_too == len(stream)


@given(st.binary(min_size=1, max_size=5000), st.integers(1, 1500))
def test_frames_of_a_batch(data: bytes, size: int) -> None:
    found, used = relay_messages.frames(framed := relay_messages.framed(memoryview(data), size))
    assert used == len(framed)
    assert found == gso.split(memoryview(data), size)


@given(st.lists(st.binary(max_size=1500), max_size=100))
def test_runs(datagrams: list[bytes]) -> None:
    runs = gso.runs([memoryview(each) for each in datagrams])
    assert [bytes(each) for batch, size in runs for each in gso.split(batch, size)] == datagrams
    assert all(len(batch) <= 65507 for batch, _ in runs)


@given(st.binary(max_size=200))
def test_joining_garbage(data: bytes) -> None:
    joining = Joining(RelayToken("192.0.2.1", 1, 1, CLAIM.pack(), KEY))
    joining.datagram(0.0)
    assert joining.received(data, 0.0) is None
    assert not joining.joined


@settings(max_examples=tries(40, 500))
@given(st.dictionaries(st.sampled_from(["host", "udp_port", "tcp_port", "claim", "key"]), json_values))
def test_token_garbage(data: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        RelayToken.from_json(data, "192.0.2.9", 443)


OWN = ["198.51.100.7", "10.0.3.7"]
SERVER, PRIVATE = "192.0.2.9", "10.0.3.9"


@pytest.mark.parametrize(("server", "host", "ports", "taken"), [
    *((SERVER, host, (5000, 5000), False) for host in (
        "::", "224.0.0.1", "255.255.255.255", "relay.example", "169.254.1.1", "fe80::1", "127.0.0.1", "::1",
        "::ffff:127.0.0.1", "10.0.3.1", "192.168.1.1", "100.64.0.1", "fd00::1", *OWN)),
    *((PRIVATE, host, (5000, 5000), False) for host in ("127.0.0.1", "::1", "169.254.1.1", *OWN)),
    *((PRIVATE, host, (5000, 5000), True) for host in ("10.0.3.1", "fd00::1", "192.0.2.1")),
    *((here, host, (5000, 5000), True) for here in ("127.0.0.1", OWN[0]) for host in ("10.0.3.1", *OWN)),
    *((server, host, (5000, 5000), True) for server in (SERVER, PRIVATE, "127.0.0.1", "::1", "fe80::1%eth0")
      for host in ("", server)),
    (SERVER, "", (22, 53), True), (SERVER, SERVER, (22, 53), True),
    (SERVER, "192.0.2.1", (5000, 22), False), (SERVER, "192.0.2.1", (53, 5000), False),
    (SERVER, "192.0.2.1", (443, 443), True), (SERVER, "192.0.2.1", (1024, 65535), True),
    (SERVER, "192.0.2.1", (5000, 0), False), (SERVER, "", (65536, 5000), False),
])
def test_where_a_server_may_send_this_host(server: str, host: str, ports: tuple[int, int], taken: bool) -> None:
    """Datagrams, and a connection: not behind this host's firewall, to what trusts who is there."""
    data = {"host": host, "udp_port": ports[0], "tcp_port": ports[1], "claim": encode(CLAIM.pack()), "key": encode(KEY)}
    if taken:
        found = RelayToken.from_json(data, server, 443, own=OWN)
        assert (found.host, found.udp_port, found.tcp_port) == (host or server, *ports)
    else:
        with pytest.raises(Malformed):
            RelayToken.from_json(data, server, 443, own=OWN)


def test_token_shows_no_key() -> None:
    token = RelayToken("192.0.2.1", 1, 1, CLAIM.pack(), b"SECRETSECRETSECRETSECRETSECRETSE")
    assert "SECRET" not in repr(token)


# --- Offers ---

bodies = st.dictionaries(
    st.sampled_from(["type", "wg", "eph", "nat", "candidates", "policy", "attempt", "reason", "program"]), json_values
)


@settings(max_examples=tries(40, 500))
@given(bodies)
def test_offer_garbage(body: dict[str, Any]) -> None:
    for read in (
        lambda: offers.type_of(body), lambda: offers.read_side(body, set()), lambda: offers.read_attempt(body),
        lambda: offers.read_keys(body, b""),
    ):
        try:
            read()
        except Malformed as error:
            assert str(error).isprintable()


def ours(role: Any = "initiator", name: bytes = b"a" * 32) -> Ours:
    return Ours(b"s" * 16, role, name)


def test_keys_agree() -> None:
    one, other = ours(), ours("responder", b"b" * 32)
    here = one.agree(offers.read_keys(offers.keys(other.public), b"b" * 32))
    there = other.agree(offers.read_keys(offers.keys(one.public), b"a" * 32))
    assert (here.preshared, here.secret, here.probe(0)) == (there.preshared, there.secret, there.probe(0))
    assert len({here.preshared, here.secret, here.probe(0), here.probe(1)}) == 4
    assert here.peer_public == other.public.wireguard
    for secret in (here.preshared, here.secret, here.private_key):
        assert secret.hex() not in repr(here)
        assert repr(secret) not in repr(here)


def test_keys_are_bound_to_all_that_was_said() -> None:
    """Who swaps one side's WireGuard key or identity leaves the two with different secrets."""
    one, other = ours(), ours("responder", b"b" * 32)
    here = one.agree(other.public)
    for said in (
        Public(b"c" * 32, one.public.wireguard, one.public.ephemeral),
        Public(b"a" * 32, ours().public.wireguard, one.public.ephemeral),
    ):
        there = other.agree(said)
        assert here.preshared != there.preshared
        assert here.secret != there.secret


@pytest.mark.parametrize("bad", ["reflected", "small order"])
def test_bad_keys(bad: str) -> None:
    one = ours()
    theirs = {
        "reflected": one.public, "small order": Public(b"b" * 32, ours().public.wireguard, bytes(32)),
    }[bad]  # fmt: skip
    with pytest.raises(Malformed):
        one.agree(theirs)


@pytest.mark.parametrize(("here", "there", "agreed"), [
    ("prefer-direct", "prefer-direct", "prefer-direct"), ("prefer-direct", "relay-only", "relay-only"),
    ("direct-only", "prefer-direct", "direct-only"), ("direct-only", "direct-only", "direct-only"),
])  # fmt: skip
def test_policies(here: Any, there: Any, agreed: str) -> None:
    assert offers.agreed(here, there) == offers.agreed(there, here) == agreed
    with pytest.raises(ValueError, match="relay-only"):
        offers.agreed("direct-only", "relay-only")


# --- Raw packets ---


@given(st.binary(max_size=100), st.integers(0, 65535), st.booleans())
def test_raw_garbage(packet: bytes, port: int, ip_header: bool) -> None:
    raw.payload(packet, port, ip_header=ip_header)


@given(st.binary(max_size=1500), st.sampled_from([("192.0.2.1", "198.51.100.7"), ("2001:db8::1", "2001:db8:1::2")]))
def test_raw_datagram(data: bytes, addresses: tuple[str, str]) -> None:
    made = raw.datagram((addresses[0], 40000), (addresses[1], 50000), data)
    assert raw.payload(made, 50000, ip_header=False) == (40000, data)
    assert raw.payload(made, 50001, ip_header=False) is None
    assert raw.payload(b"\x45" + bytes(19) + made, 50000, ip_header=True) == (40000, data)


# --- Hops ---


@pytest.mark.parametrize(("answers", "ttl"), [
    ({}, hops.USUAL),
    ({1: "10.1.0.1", 2: "198.51.100.1"}, 2),
    ({1: "192.168.1.1", 2: "100.64.0.1", 3: "203.0.113.1", 4: "198.51.100.9"}, 3),
    ({1: "192.168.1.1", 2: "100.64.0.1"}, 3),  # and then silence
    ({1: "203.0.113.1"}, 2),
    ({2: "203.0.113.1"}, 2),
    ({1: "192.168.1.1", 3: "203.0.113.1"}, 3),  # one that says nothing may be a NAT too
])  # fmt: skip
def test_opener_ttl(answers: dict[int, str], ttl: int) -> None:
    assert hops.opener_ttl(answers) == ttl
