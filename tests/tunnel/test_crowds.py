# SPDX-License-Identifier: GPL-2.0-or-later
"""What one address can take from others at the rendezvous and its relay: descriptors and pairs, on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import subprocess
import sys
from asyncio import constants
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tests.tunnel.clock import as_time_goes_by, eventually, standing
from tests.tunnel.serving import LOOPBACK, serving
from tunnel.identity.own_identity import Identity
from tunnel.relay import relay_messages
from tunnel.relay.relay_client import Joining, RelayToken
from tunnel.rendezvous import pairs
from tunnel.rendezvous.certificate import Certificate
from tunnel.rendezvous.limits import Limits, Rate
from tunnel.rendezvous.udp_relay import Relay
from tunnel.signalling.client import Signalling

ELSEWHERE = "127.0.0.2"  # another address of the loopback's
FAST = Rate(1000, 1000)
NEVER = 1e9  # seconds: a limit that is not what ends a connection in these tests


@contextlib.asynccontextmanager
async def relaying(**limits: Any) -> AsyncIterator[Relay]:
    made = await Relay.serve(LOOPBACK, tls=Certificate.load(None, None).relay_context, limits=pairs.Limits(**limits))
    try:
        yield made
    finally:
        await made.close()


@contextlib.contextmanager
def holding(port: int, count: int, frm: str = LOOPBACK) -> Iterator[list[socket.socket]]:
    """So many connections from there that never say anything, TLS' first message included."""
    made = [socket.create_connection((LOOPBACK, port), source_address=(frm, 0)) for _ in range(count)]
    try:
        for sock in made:
            sock.setblocking(False)
        yield made
    finally:
        for sock in made:
            sock.close()


def ended(socks: list[socket.socket]) -> int:
    """How many of them the server has closed; the same however often it is asked."""
    count = 0
    for sock in socks:
        try:
            count += sock.recv(1) == b""
        except BlockingIOError:
            pass
        except ConnectionError:
            count += 1
    return count


async def joins(relay: Relay, frm: str, own: bytes, peer: bytes,
                session: bytes) -> socket.socket | relay_messages.Refusal:
    """Join by UDP from that address: the socket that is an end now, or the relay's no."""
    token = RelayToken(LOOPBACK, relay.udp_port, relay.tcp_port, *relay.token(session, own, peer))
    joining, now = Joining(token), 0.0
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((frm, 0))
    sock.setblocking(False)
    while not joining.joined:
        sock.sendto(joining.datagram(now), token.udp)
        data = await asyncio.get_running_loop().sock_recv(sock, 2000)
        answer = relay_messages.parse_answer(data, token.key)
        if answer and answer.refusal:
            sock.close()
            return answer.refusal
        joining.received(data, now)
    return sock


def identities() -> Iterator[bytes]:
    """Everybody can make as many as he likes."""
    while True:
        yield Identity.generate().public.id


# --- Descriptors ---


@standing
async def test_who_never_finishes_tls_with_the_relay_holds_few_descriptors() -> None:
    async with relaying(connections_per_address=4, connects=FAST, handshake=NEVER, joining=NEVER) as relay:
        assert relay.open_connections() == 0
        with holding(relay.tcp_port, 10) as socks:
            await eventually(lambda: ended(socks) >= 6)
            assert ended(socks) == 6
            assert relay.open_connections() == 4
            with holding(relay.tcp_port, 1, ELSEWHERE) as (other,):  # who is not meant is not hit
                await eventually(lambda: relay.open_connections() == 5)
                assert ended([other]) == 0
        await eventually(lambda: relay.open_connections() == 0)


@standing
async def test_all_addresses_together_hold_what_there_is_for_them() -> None:
    async with relaying(connections=6, connections_per_address=4, connects=FAST, handshake=NEVER) as relay:
        with holding(relay.tcp_port, 4), holding(relay.tcp_port, 4, ELSEWHERE) as socks:
            await eventually(lambda: relay.open_connections() == 6)
            await eventually(lambda: ended(socks) >= 2)
            assert ended(socks) == 2


@standing
async def test_connecting_to_the_relay_again_and_again_has_a_rate() -> None:
    async with relaying(connects=Rate(0, 3), handshake=NEVER) as relay:
        for _ in range(3):
            with holding(relay.tcp_port, 1):
                await eventually(lambda: relay.open_connections() == 1)
            await eventually(lambda: relay.open_connections() == 0)
        with holding(relay.tcp_port, 1) as socks:
            await eventually(lambda: ended(socks) == 1)


@standing
async def test_tls_with_the_relay_that_takes_long_is_broken_off() -> None:
    """And long before the end of what joining may take, or asyncio by itself."""
    async with relaying(handshake=0.1, joining=NEVER) as relay:
        with holding(relay.tcp_port, 3) as socks, pytest.MonkeyPatch.context() as patch:
            patch.setattr(constants, "SSL_HANDSHAKE_TIMEOUT", NEVER)
            await eventually(lambda: relay.open_connections() == 3)
            # One that is counted already may have its limit yet to begin.
            await as_time_goes_by(eventually(lambda: relay.open_connections() == 0))
            assert ended(socks) == 3


@standing
async def test_tls_with_the_rendezvous_that_takes_long_is_broken_off() -> None:
    """Not only when the time to present oneself is up."""
    async with serving(Limits(handshake=0.1, greeting=NEVER)) as there:
        with holding(there.running.ports[0], 3) as socks:
            await eventually(lambda: there.running.open_connections() == 3)
            # One that is counted already may have its limit yet to begin.
            await as_time_goes_by(eventually(lambda: there.running.open_connections() == 0))
            assert ended(socks) == 3


@standing
async def test_the_relays_crowd_takes_nothing_from_the_signalling() -> None:
    async with serving(Limits(connections_per_address=4), relay=True) as there:
        link = await Signalling.connect([there.server], Identity.generate())
        token = await link.relay_token(Identity.generate().public, b"s" * 16)
        with holding(token.tcp_port, 40):
            await (await Signalling.connect([there.server], Identity.generate())).close()
        await link.close()


def test_there_are_descriptors_for_all_who_may_come() -> None:
    """However few the shell that starts it has: 1,024 are usual."""
    command = [sys.executable, "-m", "migrator", "rendezvous", "--relay", "--listen", f"{LOOPBACK}:0",
               "--udp-ports", "0,0", "--relay-ports", "0,0"]
    with subprocess.Popen(
        ["prlimit", "--nofile=100:4096", *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as process:
        try:
            assert process.stdout
            assert process.stdout.readline().startswith("listening")
            soft, hard = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        finally:
            process.terminate()
    assert Limits().connections + pairs.Limits().connections < soft < hard == 4096


# --- Pairs ---


@standing
async def test_pairs_of_one_address_are_limited_whatever_it_calls_itself() -> None:
    fresh = identities()
    async with relaying(pairs=20, pairs_per_address=3) as relay:
        with contextlib.ExitStack() as stack:
            for number in range(3):
                found = await joins(relay, LOOPBACK, next(fresh), next(fresh), bytes([number]) * 16)
                assert isinstance(found, socket.socket)
                stack.enter_context(found)
            assert await joins(relay, LOOPBACK, next(fresh), next(fresh), b"n" * 16) is relay_messages.Refusal.FULL
            other = await joins(relay, ELSEWHERE, next(fresh), next(fresh), b"o" * 16)
            assert isinstance(other, socket.socket)
            stack.enter_context(other)
            assert len(relay.pairs) == 4


@standing
async def test_the_second_end_of_a_pair_counts_for_its_address_too() -> None:
    a, b = Identity.generate().public.id, Identity.generate().public.id
    fresh = identities()
    async with relaying(pairs_per_address=1) as relay:
        with contextlib.ExitStack() as stack:
            for frm, own, peer, session in [(LOOPBACK, a, b, b"1"), (ELSEWHERE, next(fresh), next(fresh), b"2")]:
                found = await joins(relay, frm, own, peer, session * 16)
                assert isinstance(found, socket.socket)
                stack.enter_context(found)
            assert await joins(relay, ELSEWHERE, b, a, b"1" * 16) is relay_messages.Refusal.FULL
            # Both ends of a pair may well be behind one address.
            found = await joins(relay, LOOPBACK, b, a, b"1" * 16)
            assert isinstance(found, socket.socket)
            stack.enter_context(found)


@standing
async def test_who_is_named_as_the_other_end_loses_no_place() -> None:
    """A stranger joins as many sessions with the victim as one identity may have; the victim still gets its own."""
    victim, peer = Identity.generate().public.id, Identity.generate().public.id
    fresh = identities()
    async with relaying(pairs_each=2, pairs_per_address=10) as relay:
        with contextlib.ExitStack() as stack:
            for number in range(4):
                found = await joins(relay, ELSEWHERE, next(fresh), victim, bytes([number]) * 16)
                assert isinstance(found, socket.socket)
                stack.enter_context(found)
            for number in range(2):
                found = await joins(relay, LOOPBACK, victim, peer, b"v%d" % number * 8)
                assert isinstance(found, socket.socket)
                stack.enter_context(found)
            assert await joins(relay, LOOPBACK, victim, peer, b"v9" * 8) is relay_messages.Refusal.FULL


@pytest.mark.parametrize(("address", "counts_as"), [
    ("192.0.2.7", "192.0.2.7"), ("::ffff:192.0.2.7", "192.0.2.7"), ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
])
def test_what_counts_as_one_address_for_pairs(address: str, counts_as: str) -> None:
    """As the relay itself sees it, whatever family its socket has."""
    relay = Relay()
    claim, key = relay.token(b"s" * 16, b"a" * 32, b"b" * 32)
    token = RelayToken(address, 1, 1, claim, key)
    joining = Joining(token)
    said = relay.answer(joining.datagram(0.0), (address, 5), "via", lambda *_: None)
    assert said
    joining.received(said[0], 0.0)
    said = relay.answer(joining.datagram(0.0), (address, 5), "via", lambda *_: None)
    assert said
    assert said[1]
    assert said[1].address == counts_as
