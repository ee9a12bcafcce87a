# SPDX-License-Identifier: GPL-2.0-or-later
"""The rendezvous itself: its limits hold, its reflectors answer, its certificate is made and kept, it ends in order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from migrator.base import strict_json
from migrator.base.strict_json import Malformed
from tests.effort import tries
from tests.tunnel.clock import as_time_goes_by, eventually, pass_time, standing
from tests.tunnel.serving import LOOPBACK, Serving, serving
from tunnel import rendezvous
from tunnel.candidates import reflection
from tunnel.identity.own_identity import Identity
from tunnel.identity.tunnel_config import Server
from tunnel.metered_tls import Allowance
from tunnel.rendezvous import Options, certificate
from tunnel.rendezvous.certificate import Certificate
from tunnel.rendezvous.limits import Bucket, Buckets, Door, Limits, Rate, group
from tunnel.rendezvous.nameplates import Nameplates
from tunnel.rendezvous.server import SignallingServer, _Connection
from tunnel.signalling.client import Signalling
from tunnel.signalling.link import DATA_MAX, MESSAGE_MAX, Guarded, Link, statement
from tunnel.tunnel_errors import PeerAbsent, RendezvousUnavailable, TunnelFileUnusable

FAST = Rate(1000, 1000)
FLOOD = 64 << 20  # bytes, more than the kernel takes for both ends


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@contextlib.asynccontextmanager
async def raw(there: Serving) -> AsyncIterator[ClientConnection]:
    """A WebSocket that says what it likes, after the server's hello."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    url = f"wss://{LOOPBACK}:{there.running.ports[0]}/"
    async with connect(url, ssl=context, compression=None, proxy=None, max_size=None) as connection:
        await connection.recv()
        yield connection


async def presented(there: Serving, identity: Identity, *, waits: bool = False) -> Link:
    """A connection that has presented itself and whose messages nobody reads unless asked to."""
    link = await Link.open(there.server, 5)
    signature = identity.sign(statement(link.challenge, link.certificate))
    await link.send({"type": "present", "identity": identity.public.to_text(),
                     "signature": strict_json.encode(signature), "waits": waits})
    assert (await link.receive(5))["type"] == "welcome"
    return link


async def ends(link: Link) -> str:
    """The reason that the server gives for its goodbye, or nothing if it just goes."""
    while True:
        try:
            message = await link.receive(10)
        except RendezvousUnavailable:
            return ""
        if message["type"] == "refused":
            return str(message["reason"])


# --- Limits, as data ---


def test_a_bucket_fills_again() -> None:
    clock = Clock()
    bucket = Bucket(Rate(per_second=2, burst=3), clock)
    assert [bucket.take() for _ in range(5)] == [True, True, True, False, False]
    clock.now += 1
    assert [bucket.take() for _ in range(3)] == [True, True, False]
    clock.now += 1000
    assert [bucket.take() for _ in range(4)] == [True, True, True, False]


def test_buckets_forget_the_oldest() -> None:
    buckets = Buckets(Rate(0, 1), size=10, clock=Clock())
    assert all(buckets.take(key) for key in range(100))
    assert len(buckets) == 10
    assert not buckets.take(99)


def test_what_counts_as_one_address() -> None:
    assert group("192.0.2.1") == group("::ffff:192.0.2.1") == "192.0.2.1"
    assert group("2001:db8::1") == group("2001:db8::ffff:1%eth0") != group("2001:db8:0:1::1")


def test_the_door_counts() -> None:
    clock = Clock()
    door = Door(3, 2, Buckets(Rate(1, 10), 100, clock))
    assert [door.enter("a"), door.enter("a"), door.enter("a"), door.enter("b"), door.enter("c")] == [
        True, True, False, True, False]
    door.leave("a")
    assert door.enter("c")
    for _ in range(2):
        door.leave("b" if _ else "c")
    door.leave("a")
    assert door.open == 0
    for _ in range(50):
        if door.enter("d"):
            door.leave("d")
    assert door.turned_away == 2 + 40  # the rate of connecting, too


def test_nameplates_are_used_once() -> None:
    plates: Nameplates[str] = Nameplates(Limits(nameplates=3, nameplates_per_address=2))
    first, second = plates.open("A", "a"), plates.open("A", "a")
    assert first
    assert second
    assert first != second
    assert plates.open("A", "a") is None
    assert plates.open("B", "b")
    assert plates.open("C", "c") is None
    plates.close(first, "B")  # not whose it is
    assert plates.visit(first) == "A"
    assert plates.visit(first) is None
    plates.close(second, "A")
    assert plates.visit(second) is None
    assert len(plates) == 1


# --- Limits, on sockets ---


def has_ended(sock: socket.socket) -> bool:
    """Whether the server has closed the connection; it says nothing before TLS."""
    try:
        return sock.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


@standing
async def test_too_many_connections_are_turned_away_before_tls() -> None:
    async with serving(Limits(connections_per_address=4, connects=FAST)) as there:
        socks = [socket.create_connection((LOOPBACK, there.running.ports[0])) for _ in range(10)]
        await eventually(lambda: sum(map(has_ended, socks)) == 6)
        assert there.running.open_connections() == 4
        for sock in socks:
            sock.close()
        await eventually(lambda: there.running.open_connections() == 0)
        await (await Signalling.connect([there.server], Identity.generate())).close()


@standing
async def test_who_says_nothing_is_sent_away() -> None:
    async with serving(Limits(greeting=1.0, handshake=2.0)) as there:
        silent = socket.create_connection((LOOPBACK, there.running.ports[0]))  # not even TLS
        link = await Link.open(there.server, 5)
        await eventually(lambda: there.running.open_connections() == 2)
        pass_time(1.0)
        assert await ends(link) == "it took too long to present itself"
        await link.close()
        pass_time(1.0)
        await eventually(lambda: there.running.open_connections() == 0)
        silent.close()


@standing
async def test_a_flood_of_messages_ends_the_connection() -> None:
    async with serving(Limits(messages=Rate(0, 20))) as there:
        link = await presented(there, Identity.generate())
        with contextlib.suppress(RendezvousUnavailable):
            for number in range(200):
                await link.send({"type": "find", "ref": number + 1, "to": "00" * 32})
        assert await as_time_goes_by(ends(link)) in ("too many messages", "")
        await as_time_goes_by(link.close())
        await eventually(lambda: there.running.open_connections() == 0)


@standing
async def test_an_agent_is_not_rung_without_end() -> None:
    host = Identity.generate()
    async with (
        serving(Limits(rings=Rate(0, 5))) as there,
        await Signalling.connect([there.server], host, waits=True),
    ):
        for _ in range(5):
            async with await Signalling.connect([there.server], Identity.generate()) as caller:
                await caller.ring(host.public, b"x")
        # A new identity is made in no time; it is the address that counts.
        async with await Signalling.connect([there.server], Identity.generate()) as caller:
            with pytest.raises(RendezvousUnavailable, match="too many calls"):
                await caller.ring(host.public, b"x")


@standing
async def test_too_many_connections_of_one_identity() -> None:
    host = Identity.generate()
    async with serving(Limits(lines_per_identity=2)) as there:
        links = [await presented(there, host) for _ in range(2)]
        with pytest.raises(RendezvousUnavailable, match="too many connections of this identity"):
            await Signalling.connect([there.server], host)
        for link in links:
            await link.close()


@standing
async def test_who_does_not_read_costs_little_and_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow peer's queue fills up; who sends is told, others go on, and the slow one is cut off."""
    for end in (Guarded, _Connection):  # their clock stands still here, and so nothing is allowed again
        monkeypatch.setattr(end, "frames", Rate(0, 5000))
    monkeypatch.setattr(certificate, "FROM_PEERS", Allowance(16 * 1024, Rate(0, 1e9), 16 * 1024))
    slow, fast = Identity.generate(), Identity.generate()
    limits = Limits(messages=FAST, rings=FAST, brought=FAST, slow=1.0, queue=4)
    async with serving(limits) as there:
        link = await presented(there, slow, waits=True)
        # Read nothing any more: neither WebSocket frames nor TCP.
        link._socket.transport.pause_reading()
        async with (
            await Signalling.connect([there.server], fast) as caller,
            await Signalling.connect([there.server], fast, waits=True) as other,
        ):
            refused = 0
            with contextlib.suppress(PeerAbsent):
                for _ in range(2000):
                    try:
                        await caller.ring(slow.public, os.urandom(DATA_MAX))
                    except RendezvousUnavailable as error:
                        assert "takes no more" in str(error)
                        refused += 1
                        # The time that the slow one has is not over, nor does it go by: nobody waits for it.
                        await caller.ring(fast.public, b"hello")
                        assert (await other.receive(5)).data == b"hello"
                        pass_time(1.0)
            assert refused
            # Sent to the end: the slow one was cut off, and so is absent.
            assert not await caller.finds(slow.public)
        link._socket.transport.abort()
        await link.close()


@standing
async def test_who_sends_pings_and_reads_no_answers_is_cut_off() -> None:
    """They are no messages, which are counted, and the library answers each."""
    async with serving() as there:
        link = await presented(there, Identity.generate())
        transport = link._socket.transport
        transport.pause_reading()
        pings, sent = (bytes([0x89, 0x80 | 125]) + bytes(4 + 125)) * 200, 0
        while not transport.is_closing() and sent < FLOOD:
            transport.write(pings)
            sent += len(pings)
            await asyncio.sleep(0)  # for the loop to notice an end
            await eventually(lambda: transport.is_closing() or transport.get_write_buffer_size() < len(pings))
        assert sent < FLOOD
        await link.close()
        await eventually(lambda: there.running.open_connections() == 0)


@standing
async def test_who_sends_pieces_of_messages_is_cut_off() -> None:
    """Empty ones, without end, are no message and have no size."""
    async with serving() as there:
        link = await presented(there, Identity.generate())
        link._socket.transport.write(bytes([0x01, 0x80, *bytes(4), 0x00, 0x80, *bytes(4)]))
        with pytest.raises(RendezvousUnavailable):
            await link.receive()
        await link.close()
        await eventually(lambda: there.running.open_connections() == 0)


@pytest.mark.parametrize("data", [
    b"\0" * 10, "", "[]", "{}", '{"type":"present"}', '{"type":"pair"}', '{"type":"pair","nameplate":7}',
    '{"type":"pair","nameplate":"' + "9" * 100 + '"}', '{"type":"send","ref":1}', "[" * 20000, '{"a":NaN}',
])  # each as the first message
def test_nonsense_ends_the_connection_and_nothing_else(data: str | bytes) -> None:
    @standing
    async def test() -> None:
        async with serving() as there:
            async with raw(there) as connection:
                await connection.send(data)
                with pytest.raises(ConnectionClosed):
                    while True:
                        assert '"refused"' in str(await connection.recv())
            await eventually(lambda: there.running.open_connections() == 0)
            await (await Signalling.connect([there.server], Identity.generate())).close()
            assert there.said == []

    test()


@standing
async def test_oversized_messages_end_the_connection() -> None:
    async with serving() as there, raw(there) as connection:
        with pytest.raises(ConnectionClosed) as caught:
            await connection.send("x" * (MESSAGE_MAX + 1))
            await connection.recv()
        assert caught.value.rcvd is None or caught.value.rcvd.code == 1009


@standing
async def test_what_is_not_a_websocket_gets_nothing() -> None:
    async with serving(Limits(greeting=2.0)) as there:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        for said in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03" * 500, b"x" * 100_000, b"\r\n" * 9000):
            reader, writer = await asyncio.open_connection(LOOPBACK, there.running.ports[0], ssl=context)
            writer.write(said)
            answer = b""
            with contextlib.suppress(ConnectionError):
                writer.write_eof() if writer.can_write_eof() else None
                answer = await as_time_goes_by(reader.read())  # what makes it wait for more has two seconds
            assert len(answer) < 1000
            assert b"Traceback" not in answer
            writer.close()
        assert there.said == []
        with pytest.raises((InvalidHandshake, OSError, EOFError)):
            await connect(f"ws://{LOOPBACK}:{there.running.ports[0]}/", proxy=None, open_timeout=5)


def test_a_peers_messages_are_read_strictly() -> None:
    """Whatever a peer sends after its presentation: an answer, or the one error that ends its connection."""
    server = SignallingServer(Certificate.load(None, None), Limits(), [], None, "", lambda _: None)
    line: Any = type("Line", (), {"address": "a", "id": b"", "name": "n"})()
    keys = st.sampled_from(["type", "to", "line", "data", "session", "ref"])
    values = (st.none() | st.booleans() | st.integers() | st.text(max_size=70)
              | st.sampled_from(["send", "find", "token", "00" * 32, "AAAA", "0" * 16]))

    @settings(max_examples=tries(80, 2000), deadline=None)
    @given(st.dictionaries(keys, values, max_size=6))
    def test(message: dict[str, Any]) -> None:
        with contextlib.suppress(Malformed):
            assert server._answer(line, message)["ok"] is False

    test()


# --- Reflectors ---


async def reflected(port: int, *datagrams: bytes) -> list[bytes]:
    """Everything that comes back for these."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, \
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
        for each, address in ((sock, LOOPBACK), (last, "127.0.0.3")):  # whose requests count for another
            each.bind((address, 0))
            each.setblocking(False)
        for datagram in datagrams:
            sock.sendto(datagram, (LOOPBACK, port))
        last.sendto(reflection.request(b"n" * 12), (LOOPBACK, port))
        await loop.sock_recv(last, 2000)  # one after the other is answered
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(sock.recv(2000))
        return found


@standing
async def test_reflectors_tell_the_address() -> None:
    async with serving() as there:
        first, second = there.running.udp_ports
        assert first != second
        for port in (first, second):
            (answer,) = await reflected(port, reflection.request(b"n" * 12))
            told = reflection.answered(answer)
            assert told
            assert told[:2] == (b"n" * 12, LOOPBACK)
            assert len(answer) < reflection.REQUEST_SIZE


@standing
async def test_reflectors_answer_nothing_else_and_not_without_end() -> None:
    good = reflection.request(b"n" * 12)
    async with serving(Limits(reflections=Rate(0, 5))) as there:
        port = there.running.udp_ports[0]
        assert await reflected(port, b"", good[:-1], good + b"\0", b"\xff" * 40, os.urandom(1400)) == []
        assert len(await reflected(port, *[good] * 50)) == 5


# --- Certificate ---


def test_a_certificate_is_made_and_kept(tmp_path: Path) -> None:
    files = tmp_path / "state" / "certificate.pem", tmp_path / "state" / "key.pem"
    made = Certificate.load(*files)
    assert made.self_made
    assert Certificate.load(*files).sha256 == made.sha256
    assert all(path.stat().st_mode & 0o077 == 0 for path in files)
    assert Certificate.load(None, None).sha256 != Certificate.load(None, None).sha256


@pytest.mark.parametrize("broken", ["certificate.pem", "key.pem"])
def test_a_damaged_certificate_is_refused(tmp_path: Path, broken: str) -> None:
    files = tmp_path / "certificate.pem", tmp_path / "key.pem"
    Certificate.load(*files)
    for damaged in (True, False):
        if damaged:
            (tmp_path / broken).write_text("damaged")
        else:
            (tmp_path / broken).unlink()
        with pytest.raises(TunnelFileUnusable):
            Certificate.load(*files)


def test_a_certificate_with_anothers_key_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        Certificate.load(tmp_path / f"{name}.pem", tmp_path / f"{name}.key")
    with pytest.raises(TunnelFileUnusable):
        Certificate.load(tmp_path / "a.pem", tmp_path / "b.key")


# --- Life ---


@standing
async def test_it_says_goodbye() -> None:
    async with serving() as there:
        signalling = await Signalling.connect([there.server], Identity.generate())
    with pytest.raises(RendezvousUnavailable):
        await signalling.receive(5)
    await signalling.close()
    with pytest.raises(RendezvousUnavailable):
        await Signalling.connect([there.server], Identity.generate())


@standing
async def test_several_addresses_are_announced() -> None:
    listen = ((LOOPBACK, 0), ("127.0.0.2", 0))
    async with rendezvous.running(Options(listen=listen, udp_ports=(0, 0))) as running:
        link = await Link.open(Server.parse(running.url(LOOPBACK)), 5)
        assert [host for host, _ in link.info.reflectors] == [LOOPBACK] * 2 + ["127.0.0.2"] * 2
        await link.close()


@standing
async def test_public_addresses_are_announced_instead() -> None:
    options = Options(listen=((LOOPBACK, 0),), udp_ports=(0, 0), public=("192.0.2.1", "2001:db8::1"))
    async with rendezvous.running(options) as running:
        link = await Link.open(Server.parse(running.url(LOOPBACK)), 5)
        assert sorted({host for host, _ in link.info.reflectors}) == ["192.0.2.1", "2001:db8::1"]
        assert {port for _, port in link.info.reflectors} == set(running.udp_ports)
        await link.close()


@standing
async def test_a_port_that_is_taken() -> None:
    async with serving() as there:
        with pytest.raises(OSError, match="in use"):
            async with rendezvous.running(Options(listen=((LOOPBACK, there.running.ports[0]),), udp_ports=(0, 0))):
                pass


async def without_end(connection: ClientConnection) -> None:
    """Send more notes than anybody may, and take what comes."""
    for _ in range(20):
        await connection.send('{"type":"note","data":"AAAA"}')
    while True:
        await connection.recv()


@standing
async def test_notes_are_few() -> None:
    """Who has met somebody under a nameplate cannot use the server as a pipe."""
    async with serving() as there, raw(there) as one, raw(there) as two:
        await one.send('{"type":"pair","nameplate":""}')
        number = strict_json.load(await one.recv(), 1000)["nameplate"]
        await two.send(strict_json.dump({"type": "pair", "nameplate": number}).decode())
        await two.recv()
        with pytest.raises(ConnectionClosed):
            await as_time_goes_by(without_end(two))
        notes = 0
        while '"note"' in (said := str(await one.recv())):
            notes += 1
        assert notes <= 6 and '"gone"' in said
